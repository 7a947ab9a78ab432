"""A bad input gives one error that names it, and leaves nothing behind; a bad row is set aside and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llm4msr.data.prepare import prepare
from llm4msr.data.sources.frames import from_frames
from llm4msr.errors import InputError
from llm4msr.schema import Schema

from .tiny import log, prepared, schema

PRICE = schema([{"name": "price", "side": "item", "kind": "numeric"}])


def refusal(folder: Path, interactions: Any, of: Schema | None = None, **tables: Any) -> str:
    """The message of the one error; nothing may be left in the folder that was to be written."""
    out = folder / "out"
    with pytest.raises(InputError) as error:
        prepared(out / "data", interactions, of, **tables)
    assert not out.exists() or list(out.iterdir()) == []
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "of", "expected"),
    [
        ({"click": [0] * 7 + [3, 0, 0]}, schema(), ("column 'click'", "row 7", "label 3", "label_rule")),
        ({}, schema(columns={"time_unit": None}), ("column 'time'", "is a number", "time_unit = 's', 'ms' or 'us'")),
        ({}, schema(columns={"user": "usr"}), ("no column 'usr'", "did you mean 'user'")),
        ({}, schema([{"name": "huor", "side": "context"}]), ("no column 'huor'", "'huor'", "did you mean 'hour'")),
        ({}, schema(item_text={"title": "xyzzy"}), ("no column 'xyzzy'", "item_text", "known: user, item")),
        ({}, schema(user_text={"details": ["age"]}), ("no column 'age'", "user_text")),
        ({"price": ["1"] * 9 + ["dear"]}, PRICE, ("the numeric field 'price'", "'dear'", "declare the field as")),
        ({"user": [None] * 3 + ["u"] * 7}, schema(), ("3 of 10 rows", "user id missing", "row 0", "raise the allowed")),
        ({"time": [1] * 10}, schema(), ("leaves no training row", "10 rows")),
    ],
)
def test_what_is_wrong_with_the_log_is_said(
    tmp_path: Path, change: dict[str, Any], of: Schema, expected: tuple[str, ...]
) -> None:
    log(**change).write_parquet(tmp_path / "log.parquet")
    message = refusal(tmp_path, tmp_path / "log.parquet", of)
    assert [part for part in expected if part not in message] == []


def test_the_table_that_is_wrong_is_named(tmp_path: Path) -> None:
    items = pl.DataFrame({"item": ["i0", "i1"], "price": ["1", "dear"]})
    items.write_csv(tmp_path / "items.csv")
    assert refusal(tmp_path, log(), PRICE, items=tmp_path / "items.csv").startswith(f"{tmp_path / 'items.csv'}: ")


def test_a_number_is_checked_even_of_an_item_without_a_row(tmp_path: Path) -> None:
    items = pl.DataFrame({"item": ["i0", "i1", "nobody was shown this"], "price": ["1", "2", " 3 "]})
    assert "holds ' 3 ', which is not a number" in refusal(tmp_path, log(), PRICE, items=items)


def test_the_nearest_name_of_either_table_is_offered(tmp_path: Path) -> None:
    items = pl.DataFrame({"item": ["i0", "i1"], "prices": [1, 2]})
    message = refusal(tmp_path, log(), PRICE, items=items)
    assert message.startswith("the frame interactions, the frame items: no column 'price' (the field 'price'); ")
    assert message.endswith("did you mean 'prices' or 'place'?")


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, -9, -1])
def test_a_truncated_parquet_file_is_named(tmp_path: Path, keep: float) -> None:
    log().write_parquet(tmp_path / "log.parquet")
    whole = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "log.parquet").write_bytes(whole[: int(len(whole) * keep) if keep == 0.5 else int(keep)])
    message = refusal(tmp_path, tmp_path / "log.parquet")
    assert message.startswith(f"{tmp_path / 'log.parquet'}: cannot be read: ")
    assert message.endswith("is the file whole and of the type its name says?")


def test_the_truncated_one_of_several_files_is_named(tmp_path: Path) -> None:
    for day in "abc":
        log().write_parquet(tmp_path / f"{day}.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:100])
    assert refusal(tmp_path, tmp_path).startswith(f"{tmp_path / 'b.parquet'}: cannot be read: ")


def test_a_parquet_file_with_a_damaged_page_is_named(tmp_path: Path) -> None:
    log().write_parquet(tmp_path / "log.parquet", compression="uncompressed")
    content = bytearray((tmp_path / "log.parquet").read_bytes())
    content[4:200] = b"\xff" * 196
    (tmp_path / "log.parquet").write_bytes(content)
    assert refusal(tmp_path, tmp_path / "log.parquet").startswith(f"{tmp_path / 'log.parquet'}: cannot be read: ")


def test_a_panic_of_polars_is_an_error_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*_: Any, **__: Any) -> pl.DataFrame:
        raise pl.exceptions.PanicException("assertion failed")

    tables = from_frames(schema(), log())
    monkeypatch.setattr(pl.LazyFrame, "collect", panic)
    with pytest.raises(InputError, match="the frame interactions: cannot be read: assertion failed"):
        prepare(tables, tmp_path / "data")


def csv(change: Callable[[str], str]) -> bytes:
    return change(log().write_csv()).encode()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "Empty CSV file"),
        (csv(lambda text: text.splitlines()[0] + "\n"), "no rows are left to train on (0 were set aside)"),
        (bytes(range(256)) * 4, "correct the file"),
        (b"user,item,place,time,click,hour\n" + b"\xff\xfe,i,a,1,0,9,\n", "correct the file"),
    ],
)
def test_a_csv_file_that_is_no_table_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "log.csv").write_bytes(content)
    message = refusal(tmp_path, tmp_path / "log.csv")
    assert message.startswith(f"{tmp_path / 'log.csv'}: ")
    assert expected in message


@pytest.mark.parametrize("line", ["u0,i1,b,4,1,8,9", "u0,i1,b,4,1"])
def test_too_many_malformed_lines_are_refused_with_the_first(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.csv").write_bytes(csv(lambda text: text.replace("u0,i1,b,4,1,8", line)))
    expected = f"{tmp_path / 'log.csv'}: 1 of 10 rows cannot be used, more than the share 0.05 that is allowed: "
    assert refusal(tmp_path, tmp_path / "log.csv").startswith(
        f"{expected}1 x malformed line (first: interactions row 3). Correct"
    )


def test_a_malformed_line_is_kept_with_its_number_and_moves_no_other(tmp_path: Path) -> None:
    broken = csv(lambda text: text.replace("u1,i1,a,2,0,9", "u1,i1").replace("u0,i1,b,4,1,8", "u0,,b,4,1,8"))
    (tmp_path / "log.csv").write_bytes(broken)
    data = prepared(tmp_path / "data", tmp_path / "log.csv", max_rejected=1)
    rejected = pl.read_parquet(data.path / "rejected.parquet")
    assert rejected.select("row", "reason").rows() == [(1, "malformed line"), (3, "item id missing")]
    assert data.rows == 8


def test_a_log_without_a_usable_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the frame interactions: no rows are left to train on \(10 were set aside\)"):
        prepared(tmp_path / "data", log(place="x"), max_rejected=1)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_halfway_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(message: str) -> None:
        if message == "sealing the folder":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(from_frames(schema(), log()), tmp_path / "data", report=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_only_replaced_on_request(tmp_path: Path) -> None:
    first = prepared(tmp_path / "data").fingerprint
    changed = from_frames(schema(), log(click=0))
    with pytest.raises(InputError, match="data: exists already"):
        prepare(changed, tmp_path / "data")
    assert prepare(changed, tmp_path / "data", overwrite=True).fingerprint != first


def test_rows_that_are_set_aside_are_written_with_their_reasons(tmp_path: Path) -> None:
    log(
        user=["u0", None, "u2", "u0", "", "u2", "u0", "u1", "u2", "u0"],
        item=["i0", "i1", None, "i1", "i0", "i1", "i0", "i1", "i0", "i1"],
        place=["a", "a", "b", "x", "a", "a", "b", "b", "a", "b"],
        time=["1", "2", "3", "4", "5", None, "soon", "8", "9", "10"],
        click=["1", "0", "0", "1", "0", "0", "1", None, "0", "1"],
    ).write_csv(tmp_path / "log.csv")
    items = pl.DataFrame({"item": ["i0", "i0"], "colour": ["red", "blue"]})
    of = schema([{"name": "colour", "side": "item"}])
    data = prepared(tmp_path / "data", tmp_path / "log.csv", of, items=items, max_rejected=0.7)
    rejected = pl.read_parquet(data.path / "rejected.parquet")
    assert rejected.columns == ["table", "row", "reason", "user", "item", "scenario", "time"]
    assert rejected.rows() == [
        ("interactions", 1, "user id missing", None, "i1", "a", "2"),
        ("interactions", 2, "item id missing", "u2", None, "b", "3"),
        ("interactions", 3, "scenario unknown", "u0", "i1", "x", "4"),
        ("interactions", 4, "user id missing", None, "i0", "a", "5"),
        ("interactions", 5, "time missing", "u2", "i1", "a", None),
        ("interactions", 6, "not a time", "u0", "i0", "b", "soon"),
        ("interactions", 7, "label missing", "u1", "i1", "b", "8"),
        ("items", 1, "second row of one item", None, "i0", None, None),
    ]
    assert data.rows == 3
    assert data.manifest["counts"]["rejected"] == {
        "item id missing": 1,
        "label missing": 1,
        "not a time": 1,
        "scenario unknown": 1,
        "second row of one item": 1,
        "time missing": 1,
        "user id missing": 2,
    }


def test_bad_rows_of_the_history_are_set_aside_too(tmp_path: Path) -> None:
    history = pl.DataFrame({"user": ["u0", None], "item": ["i0", "i1"], "place": ["a", "a"], "time": [1, 2]})
    data = prepared(tmp_path / "data", positives=history, max_rejected=0.5)
    rejected = pl.read_parquet(data.path / "rejected.parquet")
    assert rejected.rows() == [("positives", 1, "user id missing", None, "i1", "a", "2")]
    assert data.positives.height == 1


def test_a_large_history_does_not_hide_a_log_that_is_broken(tmp_path: Path) -> None:
    wrong = log().with_columns(
        place=pl.when(pl.int_range(pl.len()) < pl.len() // 2).then(pl.lit("x")).otherwise("place")
    )
    history = pl.concat([log().select("user", "item", "place", "time")] * 50)
    with pytest.raises(InputError, match="x scenario unknown"):
        prepared(tmp_path / "data", interactions=wrong, positives=history)
