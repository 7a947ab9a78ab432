"""The user's own data: data frames in memory, Parquet or CSV files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from llm4msr.data.raw import as_text
from llm4msr.data.sources.delimited import read_delimited
from llm4msr.data.tables import Table, Tables
from llm4msr.errors import InputError
from llm4msr.schema import Schema

FrameLike = Any
"""A path, a polars (lazy) frame, or any object with the Arrow stream protocol: pandas, pyarrow, DuckDB."""


def read_table(source: FrameLike, what: str) -> Table:
    """Make a `Table` of a path or a frame. `what` (such as "interactions") names a frame in errors.

    CSV columns are read as text, so that an id such as `007` stays what it is, and a line with too many or too few
    values is set aside. A lazy frame is collected once, since one that groups or joins gives its rows in another
    order each time. Raises `InputError` for a path that does not exist or a type that is not known.
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
    chosen = [p for p in files if _kind(p)]
    kinds = {_kind(p) for p in chosen}
    if len(kinds) > 1:
        raise InputError(f"{path}: holds files of several kinds ({', '.join(sorted(kinds))}); keep one of them")
    if kinds == {"parquet"}:
        return Table(str(path), _scan(chosen))
    for kind, separator in (("csv", ","), ("tsv", "\t")):
        if kinds == {kind}:
            return read_delimited(chosen, separator, name=str(path))
    if path.is_dir():
        raise InputError(f"{path}: holds no file of data (.parquet, .csv or .tsv)")
    raise InputError(f"{path}: is neither Parquet (.parquet) nor CSV (.csv, .tsv)")


def _scan(paths: list[Path]) -> pl.LazyFrame:
    """Parquet files as one table.

    A column that only some of them have is missing in the others. One that is text in some and of another type in
    others is read as text, and as a number where it is whole in some and has fractions in others.
    """
    try:
        schemas = [pl.read_parquet_schema(path) for path in paths]
    except (pl.exceptions.PolarsError, OSError):
        schemas = []  # whoever reads the table says what is wrong with the file
    if all(schema == schemas[0] and list(schema) == list(schemas[0]) for schema in schemas):
        return pl.scan_parquet(paths, glob=False)
    texts = {name for schema in schemas for name, dtype in schema.items() if dtype == pl.String}
    frames = [
        pl.scan_parquet(path, glob=False).with_columns(
            as_text(pl.col(name), dtype) for name, dtype in schema.items() if name in texts and not dtype.is_nested()
        )
        for path, schema in zip(paths, schemas, strict=True)
    ]
    return pl.concat(frames, how="diagonal_relaxed")


def _kind(path: Path) -> str:
    """What a file of data is by its name; a compressed one is named so, since it is not read."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix in ("gz", "zip", "zst", "bz2", "xz"):
        return f"{Path(path.stem).suffix.lower().removeprefix('.') or 'data'}.{suffix}"
    return {"parquet": "parquet", "pq": "parquet", "csv": "csv", "tsv": "tsv"}.get(suffix, "")


def from_frames(
    schema: Schema,
    interactions: FrameLike,
    *,
    users: FrameLike | None = None,
    items: FrameLike | None = None,
    positives: FrameLike | None = None,
    events: FrameLike | None = None,
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
        events=None if events is None else read_table(events, "events"),
        recipe={"source": "frames"},
    )
