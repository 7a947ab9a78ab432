"""The user's own data: data frames in memory, Parquet or CSV files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from llm4msr.data.fields import SEPARATOR
from llm4msr.data.raw import as_text, as_texts
from llm4msr.data.sources.delimited import read_delimited, separator_of
from llm4msr.data.tables import Table, Tables, readable
from llm4msr.errors import InputError
from llm4msr.schema import Schema

FrameLike = Any
"""A path, a polars (lazy) frame, or any object with the Arrow stream protocol: pandas, pyarrow, DuckDB."""


def read_table(source: FrameLike, what: str, separators: Mapping[str, str] | None = None) -> Table:
    """Make a `Table` from a path or a frame. `what` (such as "interactions") names a frame in errors.

    CSV columns are read as text, so that an id such as `007` is kept as it is, and a line with too many or too few
    values is set aside. A lazy frame is collected once, since one that groups or joins may return its rows in another
    order each time. `separators` maps multi-valued columns to their separators. Raises `InputError` for a path that
    does not exist, or for an unknown type.
    """
    name = f"the frame {what}"
    if isinstance(source, pl.LazyFrame):
        return Table(name, Table(name, source).collect(pl.all()).lazy())
    if isinstance(source, pl.DataFrame):
        return Table(name, source.lazy())
    if isinstance(source, str | Path):
        return _read_file(Path(source), separators or {})
    if hasattr(source, "__arrow_c_stream__"):
        try:
            return Table(name, pl.DataFrame(source).lazy())
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise InputError(f"{name}: cannot be read: {error}; give each column values of one type") from error
    raise InputError(
        f"{what}: a {type(source).__name__} cannot be read; give a path, or a polars, pandas or pyarrow frame"
    )


def _read_file(path: Path, separators: Mapping[str, str]) -> Table:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    chosen = [p for p in files if _kind(p) and not _hidden(p.relative_to(path))]
    kinds = {_kind(p) for p in chosen}
    if len(kinds) > 1:
        raise InputError(f"{path}: holds files of several kinds ({', '.join(sorted(kinds))}); keep one of them")
    if kinds == {"parquet"}:
        return _scan(path, chosen, separators)
    for kind, separator in (("csv", ","), ("tsv", "\t")):
        if kinds == {kind}:
            return read_delimited(chosen, separator_of(chosen[0], separator), name=str(path))
    if path.is_dir():
        raise InputError(f"{path}: holds no file of data (.parquet, .csv or .tsv)")
    raise InputError(f"{path}: is neither Parquet (.parquet) nor CSV (.csv, .tsv)")


def _hidden(path: Path) -> bool:
    """Whether a path below a folder of data is no data, as what Spark and Hive write beside it: `_SUCCESS`, `.crc`."""
    return any(part.startswith((".", "_")) for part in path.parts)


def _scan(path: Path, paths: list[Path], separators: Mapping[str, str]) -> Table:
    """Parquet files as one table.

    A column that only some files have is missing in the others, and the table has a remark about it. If a column has
    different types, it is read as a type that fits all: as text if it is text in some files; as a float if it is an
    integer in some and a float in others; as lists of texts if it is a list in some. In that case texts are split by
    the column's separator.
    """
    schemas = [_schema(path) for path in paths]
    if all(schema == schemas[0] and list(schema) == list(schemas[0]) for schema in schemas):
        return Table(str(path), pl.scan_parquet(paths, glob=False))
    types: dict[str, set[pl.DataType]] = {}
    for schema in schemas:
        for name, dtype in schema.items():
            types.setdefault(name, set()).add(dtype)
    frames = [
        pl.scan_parquet(path, glob=False).with_columns(
            _united(pl.col(name), dtype, types[name], separators.get(name, SEPARATOR)) for name, dtype in schema.items()
        )
        for path, schema in zip(paths, schemas, strict=True)
    ]
    lacking = {name: [p for p, schema in zip(paths, schemas, strict=True) if name not in schema] for name in types}
    remarks = {
        name: f"{len(files)} of {len(paths)} files have no column {name!r} (first: {files[0]}); it is missing there"
        for name, files in lacking.items()
        if files
    }
    return Table(str(path), pl.concat(frames, how="diagonal_relaxed"), remarks=remarks)


def _schema(path: Path) -> dict[str, pl.DataType]:
    """The columns of a Parquet file; raises `InputError` that names it if it is no such file."""
    with readable(str(path)):
        return dict(pl.scan_parquet(path, glob=False).collect_schema())


def _united(column: pl.Expr, own: pl.DataType, types: set[pl.DataType], separator: str) -> pl.Expr:
    """Cast a column to a type that fits all of its `types`; polars finds one for numbers and times by itself."""
    if len(types) == 1 or any(isinstance(dtype, pl.Struct) for dtype in types):
        return column
    if any(dtype.is_nested() for dtype in types):
        return as_texts(column, own) if own.is_nested() else as_text(column, own).str.split(separator)
    return as_text(column, own) if pl.String in types else column


def _kind(path: Path) -> str:
    """The kind of a data file by its name, "" if unknown; a kind of its own, such as "csv.gz", if it is compressed."""
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
    """Make tables from the user's own frames or files; see `Tables` for what each holds.

    >>> import polars as pl
    >>> schema = Schema.model_validate({
    ...     "name": "shop", "scenarios": [{"value": "a"}], "fields": [{"name": "user", "side": "user"}],
    ...     "columns": {"user": "user", "item": "item", "scenario": "s", "time": "t", "time_unit": "s", "label": "y"}})
    >>> from_frames(schema, pl.DataFrame({"user": [1]})).interactions.name
    'the frame interactions'
    """
    separators = {f.source: f.separator for f in schema.fields if f.separator is not None}

    def read(source: FrameLike | None, what: str) -> Table | None:
        return None if source is None else read_table(source, what, separators)

    return Tables(
        schema=schema,
        interactions=read_table(interactions, "interactions", separators),
        users=read(users, "users"),
        items=read(items, "items"),
        positives=read(positives, "positives"),
        events=read(events, "events"),
        recipe={"source": "frames"},
    )
