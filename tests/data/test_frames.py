from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from llm4msr.data.sources.frames import from_frames, read_table
from llm4msr.errors import InputError

from .tiny import log, schema

FRAME = pl.DataFrame({"id": ["007", "8"], "text": ["a,b", 'say "x"\ntwice']})


def content(source: object) -> pl.DataFrame:
    table = read_table(source, "items")
    return table.frame.collect()


@pytest.mark.parametrize(
    "frame",
    [FRAME, FRAME.lazy(), FRAME.to_arrow(), pa.table(FRAME.to_arrow()).to_batches()[0], FRAME.to_pandas()],
    ids=["polars", "lazy", "table", "batch", "pandas"],
)
def test_any_data_frame_is_read(frame: object) -> None:
    assert content(frame).rows() == FRAME.rows()
    assert read_table(frame, "items").name == "the frame items"


def test_a_lazy_frame_is_evaluated_once() -> None:
    calls: list[int] = []

    def seen(frame: pl.DataFrame) -> pl.DataFrame:
        calls.append(frame.height)
        return frame

    table = read_table(FRAME.lazy().map_batches(seen), "items")
    assert table.collect(pl.col("id")).height == table.collect(pl.col("text")).height == 2
    assert calls == [2]


def test_a_lazy_frame_that_fails_is_named() -> None:
    with pytest.raises(InputError, match="the frame items: cannot be read"):
        read_table(FRAME.lazy().select("colour"), "items")


def test_missing_numbers_of_pandas_are_missing() -> None:
    assert content(pd.DataFrame({"id": [1.0, None]}))["id"].to_list() == [1.0, None]


def test_a_column_of_mixed_types_is_refused() -> None:
    with pytest.raises(InputError, match=r"the frame items: cannot be read: .*give each column values of one type"):
        read_table(pd.DataFrame({"id": [1, "a"]}), "items")


def test_other_objects_are_refused() -> None:
    with pytest.raises(InputError, match="items: a list cannot be read; give a path, or a polars, pandas or pyarrow"):
        read_table([1, 2], "items")


@pytest.mark.parametrize("name", ["items.parquet", "items.pq", "items.PARQUET", "items[1]*.parquet"])
def test_parquet_is_read(tmp_path: Path, name: str) -> None:
    FRAME.write_parquet(tmp_path / name)
    assert content(tmp_path / name).rows() == FRAME.rows()
    assert read_table(str(tmp_path / name), "items").name == str(tmp_path / name)


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.CSV", ","), ("a.tsv", "\t"), ("a[1].csv", ",")])
def test_csv_is_read_as_text(tmp_path: Path, name: str, separator: str) -> None:
    FRAME.write_csv(tmp_path / name, separator=separator)
    assert content(tmp_path / name).rows() == FRAME.rows()


@pytest.mark.parametrize("suffix", ["parquet", "pq", "csv", "tsv"])
def test_the_files_of_a_folder_are_one_table_in_order_of_their_names(tmp_path: Path, suffix: str) -> None:
    for name, frame in (("b", FRAME[1:]), ("a", FRAME[:1])):
        path = tmp_path / f"{name}.{suffix}"
        if suffix in ("parquet", "pq"):
            frame.write_parquet(path)
        else:
            frame.write_csv(path, separator="\t" if suffix == "tsv" else ",")
    (tmp_path / "_SUCCESS").touch()
    assert content(tmp_path).rows() == FRAME.rows()


def test_parquet_files_may_lack_some_columns(tmp_path: Path) -> None:
    pl.DataFrame({"item": [1, 2], "colour": ["red", None]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"price": [0.5], "item": [3]}).write_parquet(tmp_path / "b.parquet")
    found = read_table(tmp_path, "items").frame.collect()
    assert found.columns == ["item", "colour", "price"]
    assert found.rows() == [(1, "red", None), (2, None, None), (3, None, 0.5)]


def test_a_column_of_parquet_files_may_change_its_type(tmp_path: Path) -> None:
    pl.DataFrame({"click": [1, 0], "size": [24.0, 2.5]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"click": [None, 1.0], "size": ["24", "small"]}).write_parquet(tmp_path / "b.parquet")
    found = read_table(tmp_path, "items").frame.collect()
    assert found["click"].to_list() == [1.0, 0.0, None, 1.0]
    assert found["size"].to_list() == ["24", "2.5", "24", "small"]


def test_lists_of_some_parquet_files_and_texts_of_others_are_lists(tmp_path: Path) -> None:
    pl.DataFrame({"tags": [["red", "sale"], None]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"tags": ["red;new", None]}).write_parquet(tmp_path / "b.parquet")
    pl.DataFrame({"tags": [[1, 2]]}).write_parquet(tmp_path / "c.parquet")
    pl.DataFrame({"tags": [7.0]}).write_parquet(tmp_path / "d.parquet")
    found = read_table(tmp_path, "items", {"tags": ";"}).frame.collect()
    assert found["tags"].to_list() == [["red", "sale"], None, ["red", "new"], None, ["1", "2"], ["7"]]


@pytest.mark.parametrize("other", ["b.parquet", "b.tsv", "b.csv.gz"])
def test_a_folder_of_several_kinds_is_refused(tmp_path: Path, other: str) -> None:
    (tmp_path / "a.csv").write_text("user\nu\n")
    (tmp_path / other).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("this is no data")
    kind = other.removeprefix("b.")
    with pytest.raises(InputError, match=re.escape(f"holds files of several kinds (csv, {kind}); keep one")):
        read_table(tmp_path, "interactions")


def test_a_csv_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid,text\r\n1,x\r\n")
    assert content(tmp_path / "a.csv").to_dicts() == [{"id": "1", "text": "x"}]


def test_an_empty_value_of_a_csv_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,\n", encoding="utf-8")
    assert content(tmp_path / "a.csv").rows() == [("1", None)]


@pytest.mark.parametrize("line", ["3,y,z", "3"])
def test_a_ragged_line_is_set_aside_with_its_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.csv").write_text(f"id,text\n1,x\n{line}\n2,'\n{line}\n", encoding="utf-8")
    table = read_table(tmp_path / "a.csv", "items")
    assert table.frame.collect().rows() == [("1", "x"), ("2", "'")]
    assert table.set_aside("items").select("table", "row", "reason").rows() == [
        ("items", 1, "malformed line"),
        ("items", 3, "malformed line"),
    ]
    assert table.numbers(pl.Series([0, 1])).to_list() == [0, 2]


def test_a_line_of_several_files_is_numbered_over_all(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.csv").write_text("id,text\n1,x\n2\n", encoding="utf-8")
    (tmp_path / "log" / "b.csv").write_text("id,text\n3\n4,y\n", encoding="utf-8")
    table = read_table(tmp_path / "log", "items")
    assert table.malformed.tolist() == [1, 2]
    assert table.numbers(pl.Series([0, 1])).to_list() == [0, 3]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, r"is neither Parquet \(.parquet\) nor CSV") for name in ("a.xlsx", "a")),
        ("empty", r"holds no file of data \(.parquet, .csv or .tsv\)"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.xlsx").touch()
    (tmp_path / "a").touch()
    with pytest.raises(InputError, match=f"{name}: {message}"):
        read_table(tmp_path / name, "items")


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: no such file"):
        read_table(tmp_path / "none.csv", "items")


def test_the_tables_keep_their_parts() -> None:
    tables = from_frames(schema(), log(), items=FRAME)
    assert tables.items is not None
    assert (tables.interactions.name, tables.items.name) == ("the frame interactions", "the frame items")
    assert (tables.users, tables.positives) == (None, None)
    assert tables.recipe == {"source": "frames"}


def test_a_folder_is_read_with_its_subfolders_but_without_hidden_files(tmp_path: Path) -> None:
    for day, value in (("2026-10-02", 2), ("2026-10-01", 1)):
        (tmp_path / f"day={day}").mkdir()
        pl.DataFrame({"id": [value]}).write_parquet(tmp_path / f"day={day}" / "part-0.parquet")
    (tmp_path / "_temporary").mkdir()
    (tmp_path / "_temporary" / "part-1.parquet").touch()
    (tmp_path / ".part-0.parquet").touch()
    (tmp_path / "_SUCCESS").touch()
    assert content(tmp_path)["id"].to_list() == [1, 2]


def test_a_column_that_some_files_lack_is_remarked_on(tmp_path: Path) -> None:
    pl.DataFrame({"id": [1], "device": ["tv"]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"id": [2], "Device": ["tv"]}).write_parquet(tmp_path / "b.parquet")
    table = read_table(tmp_path, "items")
    assert set(table.remarks) == {"device", "Device"}
    assert "1 of 2 files have no column 'device'" in table.remarks["device"]
    assert "b.parquet" in table.remarks["device"]
    assert not read_table(tmp_path / "a.parquet", "items").remarks


def test_a_csv_file_with_semicolons_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;text\n1;a,b\n", encoding="utf-8")
    assert content(tmp_path / "a.csv").rows() == [("1", "a,b")]
