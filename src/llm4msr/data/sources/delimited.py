"""Read CSV and TSV files once into typed columns. Malformed lines are set aside.

A line is malformed if it has a wrong number of values, is not in UTF-8, or is the header once more.

A quote that opens a value and is never closed makes one value of all lines up to the next quote. A file is refused if
a value or a malformed line contains several lines that look like rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute as pc
from pyarrow import csv, ipc

from llm4msr.data.sources.quotes import RowsInside
from llm4msr.data.tables import Table, number_in_source
from llm4msr.errors import InputError, nearest
from llm4msr.folders import Scratch

_BLOCK = 1 << 23
"""Bytes parsed at once; no line may be longer."""
_SEPARATORS = ",;\t|"
"""Separators that files are written with."""


def read_delimited(
    paths: Sequence[Path],
    separator: str,
    *,
    types: Mapping[str, pa.DataType] | None = None,
    name: str | None = None,
    header: Callable[[str], str] = str,
) -> Table:
    """Read files with the same columns into a temporary Arrow file, so that memory does not grow with their size.

    `types` chooses columns and their types. Without it every column is read as text, so that an id such as `007` is
    kept as it is. In a typed column, a text that is not a number of the type is missing. `header` maps a column name in
    the file to the name to use. An empty value is missing.

    Raises `InputError` for a file that cannot be read, lacks a column of `types`, has other columns than the first
    file, or seems to have a quote that is never closed.
    """
    scratch = Scratch()
    target = scratch.path / "table.arrow"
    malformed: list[NDArray[np.int64]] = []
    writer: ipc.RecordBatchFileWriter | None = None
    written: pa.Schema | None = None
    rows = 0
    for path in paths:
        names = _columns(path, separator, header)
        layout = _layout(path, names, types)
        if writer is None:
            writer, written = ipc.new_file(target, layout), layout
        elif written != layout:
            raise InputError(f"{path}: its columns ({', '.join(layout.names)}) are not those of {paths[0]}")
        file = _File(path, separator, names, layout)
        for table in file.tables():
            writer.write_table(table)
        malformed.append(rows + file.malformed())
        rows += file.rows
    assert writer is not None
    writer.close()
    return Table(
        name or ", ".join(map(str, paths)),
        pl.scan_ipc(target, glob=False),
        malformed=np.concatenate(malformed),
        keeps=scratch,
    )


def separator_of(path: Path, usual: str) -> str:
    """The separator of a file: `usual`, unless its header has another one only, as a .csv file with semicolons."""
    try:
        first = _first_line(path).decode(errors="replace")
    except OSError:
        return usual  # reading the file will report what is wrong with it
    found = [separator for separator in _SEPARATORS if separator in first]
    return found[0] if len(found) == 1 else usual


def _layout(path: Path, names: Mapping[str, str], types: Mapping[str, pa.DataType] | None) -> pa.Schema:
    """The columns to read, and their types."""
    if types is None:
        return pa.schema([(name, pa.string()) for name in names])
    if missing := [name for name in types if name not in names]:
        raise InputError(
            f"{path}: has no column {missing[0]!r}; {nearest(missing[0], list(names))}. "
            "Is it the version of the data set that this source reads?"
        )
    return pa.schema(list(types.items()))


class _File:
    """One file, read block by block. Malformed rows are left out and remembered.

    Args:
        path: the file.
        separator: between values.
        names: the column names in the file, by the names to use.
        layout: the columns to read.
    """

    def __init__(self, path: Path, separator: str, names: Mapping[str, str], layout: pa.Schema) -> None:
        self._path, self._layout = path, layout
        self._rows_inside = RowsInside(separator, len(names))
        self._skipped: list[int] = []
        self._swallowed: list[int] = []
        self._illegible = [np.empty(0, dtype=np.int64)]
        self._read = 0
        columns = [names[name] for name in layout.names]
        self._header = columns if len(columns) == len(names) else []
        self._reader = _open(path, separator, columns, self._rows_inside, self._skipped, self._swallowed)

    def tables(self) -> Iterator[pa.Table]:
        """The legible rows of each block. Raises `InputError` if a quote seems never to be closed."""
        types = self._layout.types
        while (batch := _next(self._reader, self._path)) is not None:
            columns = [_numbers_or_text(column, kind) for column, kind in zip(batch, types, strict=True)]
            texts = [column for column in columns if column.type == pa.string()]
            before = self._read + len(self._skipped)
            self._swallowed += [before + row for row in self._rows_inside.of(texts)]
            legible = _legible(texts, batch.num_rows)
            if self._header and len(texts) == len(self._header):  # all columns are read, and in each there is text
                legible &= ~_header_again(texts, self._header)
            self._illegible.append(self._read + np.flatnonzero(~legible))
            self._read += batch.num_rows
            if not legible.all():
                columns = [column.filter(pa.array(legible)) for column in columns]
            columns = [_as(column, kind) for column, kind in zip(columns, types, strict=True)]
            yield pa.table(columns, schema=self._layout)
        if self._swallowed:
            raise InputError(
                f"{self._path}: near row {min(self._swallowed)} a value has whole rows inside: is a quote opened there "
                "and never closed? Close it, or double it where it belongs to the text"
            )

    @property
    def rows(self) -> int:
        """How many rows were read, malformed ones included."""
        return self._read + len(self._skipped)

    def malformed(self) -> NDArray[np.int64]:
        """The numbers of the rows that were left out, ascending."""
        cut = np.array(self._skipped, dtype=np.int64) - 2  # a line's number counts the header as 1
        return np.sort(np.concatenate([cut, number_in_source(np.concatenate(self._illegible), cut)]))


def _columns(path: Path, separator: str, header: Callable[[str], str]) -> dict[str, str]:
    """Map the name to use for each column to its name in the file."""
    try:
        first = _first_line(path)
        fields = csv.open_csv(
            pa.BufferReader(first),
            parse_options=csv.ParseOptions(delimiter=separator),
        ).schema.names
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: cannot be read: {error}; is it a text file with a header?") from error
    if twice := sorted({field for field in fields if fields.count(field) > 1}):
        raise InputError(f"{path}: the header names the column {twice[0]!r} twice; rename one of them")
    return {header(field): field for field in fields}


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline(_BLOCK)


def _open(
    path: Path,
    separator: str,
    columns: list[str],
    inside: RowsInside,
    skipped: list[int],
    swallowed: list[int],
) -> csv.CSVStreamingReader:
    def skip(row: csv.InvalidRow) -> Literal["skip"]:
        if inside.has(row.text):
            swallowed.append(row.number - 2)
        skipped.append(row.number)
        return "skip"

    try:
        return csv.open_csv(
            path,
            read_options=csv.ReadOptions(block_size=_BLOCK, use_threads=False),  # with threads, bad rows have no number
            parse_options=csv.ParseOptions(
                delimiter=separator, newlines_in_values=True, invalid_row_handler=skip, quote_char='"'
            ),
            convert_options=csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.string()),
                check_utf8=False,  # this check would end the reading at the first row not in UTF-8
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        raise _unreadable(path, error) from error


def _next(reader: csv.CSVStreamingReader, path: Path) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except pa.ArrowInvalid as error:
        raise _unreadable(path, error) from error


def _numbers_or_text(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column in its type, or as text if not all values are numbers. Only text needs the check for UTF-8."""
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return column


def _legible(texts: Sequence[pa.Array], rows: int) -> NDArray[np.bool_]:
    """Which rows of a batch are valid UTF-8 in all columns of `texts`."""
    found = np.ones(rows, dtype=bool)
    for column in texts:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            values = column.cast(pa.binary()).to_pylist()
            found &= [value is None or _is_utf8(value) for value in values]
    return found


def _header_again(columns: Sequence[pa.Array], header: Sequence[str]) -> NDArray[np.bool_]:
    """Which rows of a batch have each column's name as its value, as where files were joined with their headers."""
    found = np.ones(len(columns[0]), dtype=bool)
    for column, name in zip(columns, header, strict=True):
        if found.any():
            found &= pc.equal(column, name).fill_null(False).to_numpy(zero_copy_only=False)
    return found


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unreadable(path: Path, error: pa.ArrowInvalid) -> InputError:
    return InputError(f"{path}: {error}; correct the file")


def _as(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column in its type; values that cannot be converted are missing."""
    if column.type == kind:
        return column
    number = pl.col("text").cast(pl.Float64, strict=False).fill_nan(None)
    if pa.types.is_integer(kind):  # via float only if written as one: floats above 2**53 are inexact
        whole = pl.when(number == number.round()).then(number).cast(pl.Int64, strict=False)
        number = pl.coalesce(pl.col("text").cast(pl.Int64, strict=False), whole)
    typed = number.cast(pl.Series(pa.array([], kind)).dtype, strict=False)
    return pl.DataFrame({"text": pl.Series(column)}).select(typed).to_series().to_arrow()
