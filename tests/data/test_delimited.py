from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from llm4msr.data.sources import delimited
from llm4msr.data.sources.delimited import read_delimited, separator_of
from llm4msr.data.tables import Table
from llm4msr.errors import InputError


def read(folder: Path, *texts: str | bytes, separator: str = ",", **more: Any) -> Table:
    """The table of files 0.csv, 1.csv and so on in the folder."""
    paths = [folder / f"{number}.csv" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_delimited(paths, separator, **more)


def rows(table: Table) -> list[tuple[Any, ...]]:
    return table.frame.collect().rows()


def test_without_types_everything_is_text(tmp_path: Path) -> None:
    table = read(tmp_path, "id,price\n007,1.50\n 8,x\n")
    assert rows(table) == [("007", "1.50"), (" 8", "x")]
    assert table.frame.collect_schema() == {"id": pl.String, "price": pl.String}
    assert table.malformed.tolist() == []


def test_types_choose_the_columns_and_their_order(tmp_path: Path) -> None:
    types = {"c": pa.float64(), "a": pa.int64(), "b": pa.int8(), "d": pa.string()}
    table = read(tmp_path, "a,b,unread,c,d\n9007199254740993,1,[1],2.5,007\n-2,0,x,1e3,\n", types=types)
    assert table.frame.collect_schema() == {"c": pl.Float64, "a": pl.Int64, "b": pl.Int8, "d": pl.String}
    assert rows(table) == [(2.5, 9007199254740993, 1, "007"), (1000.0, -2, 0, None)]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.float32(), pa.float64()])
def test_what_is_no_number_is_missing_in_a_typed_column(tmp_path: Path, kind: pa.DataType) -> None:
    table = read(tmp_path, "a,b\n1,x\none,x\n,x\n-3,x\n", types={"a": kind})
    assert table.frame.collect()["a"].to_list() == [1, None, None, -3]


def test_whole_numbers_are_exact_and_none_is_changed_to_fit(tmp_path: Path) -> None:
    text = "a,b\n9007199254740993,1\n2.7,257\n3.0,-128\nx,300\n1e30,1.5\n"
    assert rows(read(tmp_path, text, types={"a": pa.int64(), "b": pa.int8()})) == [
        *((9007199254740993, 1), (None, None), (3, -128), (None, None), (None, None))
    ]


@pytest.mark.parametrize("types", [None, {"b": pa.int64(), "a": pa.string()}])
def test_the_header_once_more_is_set_aside(tmp_path: Path, types: dict[str, pa.DataType] | None) -> None:
    table = read(tmp_path, "a,b\nx,1\na,b\na,3\n", "a,b\ny,4\na,b\n", types=types)
    assert table.malformed.tolist() == [1, 4]
    assert table.frame.select(pl.col("a"), pl.col("b").cast(pl.String)).collect().rows() == [
        *(("x", "1"), ("a", "3"), ("y", "4"))
    ]


def test_of_a_part_of_the_columns_none_can_be_told_to_be_the_header(tmp_path: Path) -> None:
    table = read(tmp_path, "a,b\na,1\n", types={"a": pa.string()})
    assert rows(table) == [("a",)]


@pytest.mark.parametrize(
    ("header", "usual", "found"),
    [
        ("a,b", ",", ","),
        ("a;b", ",", ";"),
        ("a\tb", ",", "\t"),
        ("a|b", ",", "|"),
        ("a,b", "\t", ","),
        ("a;b,c", ",", ","),
        ("a;b|c", ",", ","),
        ("a", ",", ","),
        ("", "\t", "\t"),
    ],
)
def test_the_separator_of_a_header_that_has_only_one(tmp_path: Path, header: str, usual: str, found: str) -> None:
    (tmp_path / "x.csv").write_text(header + "\n1;2,3|4\n")
    assert separator_of(tmp_path / "x.csv", usual) == found


LOG = [f"{n},u,i,s,{n % 2},note" for n in range(40)]


def with_value(place: int, value: str) -> str:
    """The log with another value in row 20."""
    cells = LOG[20].split(",")
    cells[place] = value
    return "\n".join(["n,user,item,place,click,note", *LOG[:20], ",".join(cells), *LOG[21:]]) + "\n"


@pytest.mark.parametrize("place", [0, 3, 5])
def test_a_quote_that_is_never_closed_is_refused_by_its_row(tmp_path: Path, place: int) -> None:
    with pytest.raises(InputError, match=r"0\.csv: near row 20 a value has whole rows inside"):
        read(tmp_path, with_value(place, '"12 in'))


def test_a_quote_within_a_value_is_a_letter_like_any_other(tmp_path: Path) -> None:
    found = rows(read(tmp_path, with_value(5, 'a 12" pan')))
    assert len(found) == 40
    assert found[20][5] == 'a 12" pan'


def test_a_quote_that_is_closed_rows_later_is_refused(tmp_path: Path) -> None:
    lines = ["n,user,item,place,click,note", *LOG]
    lines[10] = '9,u,i,s,1,"12 in'
    lines[30] = '29,u,i,s,1,"14 in'
    with pytest.raises(InputError, match="near row 9 a value has whole rows inside"):
        read(tmp_path, "\n".join(lines) + "\n")


def test_a_text_with_a_very_long_line_is_a_text(tmp_path: Path) -> None:
    prose = "\n".join(["a", *["x" * 200_000] * 5, "b"])
    assert rows(read(tmp_path, f'user,review\nu1,"{prose}"\n')) == [("u1", prose)]


def test_texts_may_have_lines_and_separators_of_their_own(tmp_path: Path) -> None:
    prose = "good\nred, small and cheap\nbought, used, liked\nwould, I think, buy again\nend"
    text = f'user,item,review\nu1,i1,"{prose}"\nu2,i2,fine\n'
    assert rows(read(tmp_path, text)) == [("u1", "i1", prose), ("u2", "i2", "fine")]


def test_a_whole_number_may_be_written_as_a_float(tmp_path: Path) -> None:
    assert rows(read(tmp_path, "a,b\n1.0,x\n1.684e3,x\n", types={"a": pa.int64()})) == [(1,), (1684,)]


def test_a_missing_column_is_named_with_its_file_and_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, "usr_id,item\n1,2\n", types={"item": pa.int64(), "user_id": pa.int64()})
    message = str(error.value)
    assert message.startswith(f"{tmp_path / '0.csv'}: has no column 'user_id'; did you mean 'usr_id'?")
    assert message.endswith(" Is it the version of the data set that this source reads?")


def test_the_file_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1\.csv: has no column 'b'; known: a\."):
        read(tmp_path, "a,b\n1,2\n", "a\n1\n", types={"b": pa.int64()})


def test_the_names_of_a_header_may_be_changed(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        "id:token\tage:float\n1\t2\n",
        separator="\t",
        types={"age": pa.float32(), "id": pa.string()},
        header=lambda name: name.partition(":")[0],
    )
    assert table.frame.collect().to_dicts() == [{"age": 2.0, "id": "1"}]


def test_an_empty_value_is_missing_quoted_or_not(tmp_path: Path) -> None:
    assert rows(read(tmp_path, 'a,b\n,x\n"",y\n')) == [(None, "x"), (None, "y")]


def test_other_words_for_nothing_stay_text(tmp_path: Path) -> None:
    assert rows(read(tmp_path, "a,b\nNA,null\nNaN,None\n")) == [("NA", "null"), ("NaN", "None")]


def test_quotes_hold_separators_line_ends_and_quotes(tmp_path: Path) -> None:
    table = read(tmp_path, 'a,b\n"[1, 2]","x\ny"\n"say ""z""",1\n')
    assert rows(table) == [("[1, 2]", "x\ny"), ('say "z"', "1")]


def test_a_line_is_counted_as_a_row_whatever_line_ends_it_holds(tmp_path: Path) -> None:
    table = read(tmp_path, 'a,b\n1,"x\n\ny"\n2\n3,z\n4,5,6\n')
    assert rows(table) == [("1", "x\n\ny"), ("3", "z")]
    assert table.malformed.tolist() == [1, 3]


@pytest.mark.parametrize("line", ["1", "1,2,3", "1,2,3,4,5", '"1,2"', "1,2,"])
def test_a_line_with_too_many_or_too_few_values_is_set_aside(tmp_path: Path, line: str) -> None:
    table = read(tmp_path, f"a,b\n{line}\n5,6\n{line}\n{line}\n7,8\n", types={"b": pa.int64()})
    assert rows(table) == [(6,), (8,)]
    assert table.malformed.tolist() == [0, 2, 3]


def test_a_line_that_is_not_utf8_is_set_aside_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 32)
    lines = [b"%d,x" % k for k in range(40)]
    for k in (3, 21, 22):
        lines[k] = b"%d,\xc3" % k
    for k in (0, 5, 30):
        lines[k] = b"short"
    lines[12] = b"\xff,x"
    content = b"a,b\n" + b"\n".join(lines)
    table = read(tmp_path, content, content, types={"a": pa.int64(), "b": pa.string()})
    malformed = [0, 3, 5, 12, 21, 22, 30]
    assert table.malformed.tolist() == malformed + [40 + k for k in malformed]
    kept = [k for k in range(40) if k not in malformed]
    assert rows(table) == [(k, "x") for k in kept + kept]
    assert table.numbers(pl.Series(range(len(rows(table))))).to_list() == kept + [40 + k for k in kept]


def test_a_file_cut_off_in_its_last_line_loses_that_line_only(tmp_path: Path) -> None:
    table = read(tmp_path, "a,b,c\n1,2,3\n4,5")
    assert rows(table) == [("1", "2", "3")]
    assert table.malformed.tolist() == [1]


def test_a_last_line_needs_no_line_end(tmp_path: Path) -> None:
    assert rows(read(tmp_path, "a,b\r\n1,2\r\n3,4")) == [("1", "2"), ("3", "4")]


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path) -> None:
    text = "a,b\n1,2\n"
    table = read(tmp_path, text.encode("utf-8-sig"), text, types={"a": pa.int64()})
    assert table.frame.collect().to_dicts() == [{"a": 1}, {"a": 1}]


def test_several_files_are_one_table_numbered_over_all(tmp_path: Path) -> None:
    table = read(tmp_path, "a,b\n1\n2,x\n", "a,b\n3,y\n4\n5,z\n", "a,b\n6\n")
    assert rows(table) == [("2", "x"), ("3", "y"), ("5", "z")]
    assert table.malformed.tolist() == [0, 3, 5]
    assert table.numbers(pl.Series([0, 1, 2])).to_list() == [1, 2, 4]
    assert table.name == ", ".join(str(tmp_path / f"{n}.csv") for n in range(3))


def test_the_columns_of_typed_files_may_be_in_another_order(tmp_path: Path) -> None:
    table = read(tmp_path, "a,b\n1,x\n", "b,c,a\ny,0,2\n", types={"a": pa.int64(), "b": pa.string()})
    assert rows(table) == [(1, "x"), (2, "y")]


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, "a,b\n1,2\n", "a,c\n1,2\n")
    first, second = tmp_path / "0.csv", tmp_path / "1.csv"
    assert str(error.value) == f"{second}: its columns (a, c) are not those of {first}"


def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_text("user,item,user\na,b,c\n")
    with pytest.raises(InputError, match=r"twice\.csv: the header names the column 'user' twice"):
        read_delimited([path], ",")


def test_a_table_may_be_given_a_name(tmp_path: Path) -> None:
    assert read(tmp_path, "a\n1\n", name="the log").name == "the log"


def test_a_header_alone_gives_no_rows(tmp_path: Path) -> None:
    table = read(tmp_path, "a,b\n", types={"b": pa.int64()})
    assert table.frame.collect().shape == (0, 1)


def test_row_numbers_go_on_from_block_to_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 32)
    lines = [f"{k},x" if k % 5 else f"{k}" for k in range(40)]
    table = read(tmp_path, "a,b\n" + "\n".join(lines), types={"a": pa.int64()})
    assert table.frame.collect()["a"].to_list() == [k for k in range(40) if k % 5]
    assert table.malformed.tolist() == [k for k in range(40) if not k % 5]


def test_a_line_longer_than_a_block_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 32)
    with pytest.raises(InputError, match=r"0\.csv: .*; correct the file"):
        read(tmp_path, f"a,b\n1,{'x' * 200}\n2,y\n")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cannot be read: .*Empty CSV file.*; is it a text file with a header?"),
        (b"\xff\xfea,b\n1,2\n", "cannot be read: .*; is it a text file with a header?"),
        (b"a,b\n1,x\n2,\xff,3\n", "CSV parse error: Row #3: Expected 2 columns, got 3: .*; correct the file"),
    ],
)
def test_a_file_that_is_no_text_table_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path / '0.csv'}: {expected}"):
        read(tmp_path, content)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: cannot be read: No such file"):
        read_delimited([tmp_path / "none.csv"], ",")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.mark.parametrize(
    "derive", [lambda t: t, lambda t: t.replace(t.frame.select("a"))], ids=["the table", "one derived from it"]
)
def test_the_temporary_folder_goes_with_the_last_table(
    tmp_path: Path, scratch: Path, derive: Callable[[Table], Table]
) -> None:
    table = derive(read(tmp_path, "a,b\n1,2\n"))
    gc.collect()
    assert [path.name for path in scratch.rglob("*.arrow")] == ["table.arrow"]
    assert table.frame.select("a").collect().rows() == [("1",)]
    del table
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_the_temporary_folder_goes_after_an_error(tmp_path: Path, scratch: Path) -> None:
    with pytest.raises(InputError):
        read(tmp_path, "a,b\n1,2\n", "c\n1\n")
    gc.collect()
    assert list(scratch.iterdir()) == []
