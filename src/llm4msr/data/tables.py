"""The raw tables that a source hands to `prepare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from llm4msr.errors import InputError, nearest
from llm4msr.schema import Schema

_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What polars raises on a damaged file; it panics where a Parquet page contradicts its footer."""


def as_text(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A raw value as text: 12.0 is written "12", so that a column read as floats keeps its values; NaN is missing."""
    if not dtype.is_float():
        return value.cast(pl.String)
    whole = value.cast(pl.Int64, strict=False)
    return pl.when(whole == value).then(whole.cast(pl.String)).otherwise(value.fill_nan(None).cast(pl.String))


def as_id(column: str, dtype: pl.DataType) -> pl.Expr:
    """The id of a user or an item as text; an empty one is missing."""
    text = as_text(pl.col(column), dtype)
    return pl.when(text != "").then(text)


@dataclass(frozen=True)
class Table:
    """A lazy frame and the name (a path, or what it is) that errors call it by."""

    name: str
    frame: pl.LazyFrame

    def columns(self) -> list[str]:
        """The column names; raises `InputError` where the file cannot be read."""
        try:
            return self.frame.collect_schema().names()
        except _UNREADABLE as error:
            raise self.unreadable(error) from error

    def require(self, column: str, role: str) -> None:
        """Raise `InputError` unless the table has `column`, which plays `role`."""
        columns = self.columns()
        if column not in columns:
            raise InputError(f"{self.name}: has no column {column!r} ({role}); {nearest(column, columns)}")

    def collect(self, *expressions: pl.Expr) -> pl.DataFrame:
        """Evaluate a selection, streaming; raises `InputError` where the file is damaged."""
        try:
            return self.frame.select(*expressions).collect(engine="streaming")
        except _UNREADABLE as error:
            raise self.unreadable(error) from error

    def unreadable(self, error: BaseException) -> InputError:
        """The error of a file that is cut off, damaged or not what its name says."""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return InputError(f"{self.name}: cannot be read: {reason}; is the file whole and of the type its name says?")


@dataclass(frozen=True)
class Tables:
    """What `prepare` reads: impressions, and what is known beside them.

    `users` and `items` hold one row an id under the schema's own user and item column; `positives` is the history
    (user, item, scenario, time and optionally `behaviour`) where it is wider than the positive impressions. `recipe`
    says how the tables were made, and is kept in the manifest.
    """

    schema: Schema
    interactions: Table
    users: Table | None = None
    items: Table | None = None
    positives: Table | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
