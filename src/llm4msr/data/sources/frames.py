"""The user's own data: data frames in memory, Parquet or CSV files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from llm4msr.data.tables import Table, Tables
from llm4msr.errors import InputError
from llm4msr.schema import Schema

FrameLike = Any
"""A path, a polars (lazy) frame, or any object with the Arrow stream protocol: pandas, pyarrow, DuckDB."""


def read_table(source: FrameLike, what: str) -> Table:
    """Make a `Table` of a path or a frame. `what` (such as "interactions") names a frame in errors.

    CSV columns are read as text, so that an id such as `007` stays what it is. Raises `InputError` for a path that
    does not exist or a type that is not known.
    """
    if isinstance(source, pl.LazyFrame):
        return Table(f"the frame {what}", source)
    if isinstance(source, pl.DataFrame):
        return Table(f"the frame {what}", source.lazy())
    if isinstance(source, str | Path):
        return _read_file(Path(source))
    if hasattr(source, "__arrow_c_stream__"):
        return Table(f"the frame {what}", pl.DataFrame(source).lazy())
    raise InputError(
        f"{what}: a {type(source).__name__} cannot be read; give a path, or a polars, pandas or pyarrow frame"
    )


def _read_file(path: Path) -> Table:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    suffixes = {p.suffix for p in path.iterdir() if p.is_file()} if path.is_dir() else {path.suffix.lower()}
    if ".parquet" in suffixes or ".pq" in suffixes:
        return Table(str(path), pl.scan_parquet(path / "*.parquet" if path.is_dir() else path))
    if suffixes & {".csv", ".tsv"}:
        pattern = path / "*.csv" if path.is_dir() else path
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        return Table(str(path), pl.scan_csv(pattern, infer_schema=False, separator=separator))
    raise InputError(f"{path}: is neither Parquet (.parquet) nor CSV (.csv, .tsv)")


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
