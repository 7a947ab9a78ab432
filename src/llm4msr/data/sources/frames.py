"""The user's own data: data frames in memory, Parquet or CSV files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from pyarrow import csv

from llm4msr.data.tables import Table, Tables
from llm4msr.errors import InputError
from llm4msr.schema import Schema

_BLOCK = 1 << 26
"""Bytes of CSV checked at once; no line may be longer."""

FrameLike = Any
"""A path, a polars (lazy) frame, or any object with the Arrow stream protocol: pandas, pyarrow, DuckDB."""


def read_table(source: FrameLike, what: str) -> Table:
    """Make a `Table` of a path or a frame. `what` (such as "interactions") names a frame in errors.

    CSV columns are read as text, so that an id such as `007` stays what it is. A lazy frame is collected once, since
    one that groups or joins gives its rows in another order each time. Raises `InputError` for a path that does not
    exist, a type that is not known, or a CSV line with too many or too few values.
    """
    name = f"the frame {what}"
    if isinstance(source, pl.LazyFrame):
        return Table(name, Table(name, source).collect(pl.all()).lazy())
    if isinstance(source, pl.DataFrame):
        return Table(name, source.lazy())
    if isinstance(source, str | Path):
        return _read_file(Path(source))
    if hasattr(source, "__arrow_c_stream__"):
        try:
            return Table(name, pl.DataFrame(source).lazy())
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise InputError(f"{name}: cannot be read: {error}; give each column values of one type") from error
    raise InputError(
        f"{what}: a {type(source).__name__} cannot be read; give a path, or a polars, pandas or pyarrow frame"
    )


def _read_file(path: Path) -> Table:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    if parquet := [p for p in files if p.suffix.lower() in (".parquet", ".pq")]:
        return Table(str(path), pl.scan_parquet(parquet, glob=False))
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        if texts := [p for p in files if p.suffix.lower() == suffix]:
            for text in texts:
                _check_lines(text, separator)
            return Table(str(path), pl.scan_csv(texts, infer_schema=False, separator=separator, glob=False))
    raise InputError(f"{path}: is neither Parquet (.parquet) nor CSV (.csv, .tsv)")


def _check_lines(path: Path, separator: str) -> None:
    """Raise `InputError` for a line with too many or too few values, which polars would cut or fill."""
    try:
        csv.read_csv(
            path,
            read_options=csv.ReadOptions(block_size=_BLOCK, use_threads=False),  # threads would not know the row
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=csv.ConvertOptions(include_columns=[""], include_missing_columns=True),
        )
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: {error}; correct the file, or put texts with a {separator!r} in quotes") from error


def from_frames(
    schema: Schema,
    interactions: FrameLike,
    *,
    users: FrameLike | None = None,
    items: FrameLike | None = None,
    positives: FrameLike | None = None,
) -> Tables:
    """Tables of the user's own frames or files; see `Tables` for what each holds.

    >>> import polars as pl
    >>> schema = Schema.model_validate({
    ...     "name": "shop", "scenarios": [{"value": "a"}], "fields": [{"name": "user", "side": "user"}],
    ...     "columns": {"user": "user", "item": "item", "scenario": "s", "time": "t", "time_unit": "s", "label": "y"}})
    >>> from_frames(schema, pl.DataFrame({"user": [1]})).interactions.name
    'the frame interactions'
    """
    return Tables(
        schema=schema,
        interactions=read_table(interactions, "interactions"),
        users=None if users is None else read_table(users, "users"),
        items=None if items is None else read_table(items, "items"),
        positives=None if positives is None else read_table(positives, "positives"),
        recipe={"source": "frames"},
    )
