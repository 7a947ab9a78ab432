"""The raw tables that a source hands to `prepare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.negatives import Negatives
from llm4msr.data.raw import fits_int64
from llm4msr.errors import InputError, nearest
from llm4msr.schema import Schema

_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""Errors of polars on a damaged file. It panics if a Parquet page contradicts the footer."""


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn errors of damaged files or unexpected columns into an `InputError` that names the file as `name`."""
    try:
        yield
    except _UNREADABLE as error:
        raise unreadable(name, error) from error


def unreadable(name: str, error: BaseException) -> InputError:
    """The error for a file that is truncated, damaged or not of the type that its name says."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{name}: cannot be read: {reason}; is the file whole and of the type its name says?")


def number_in_source(rows: NDArray[np.int64], malformed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Convert row numbers that skip malformed rows to row numbers in the source. `malformed` must be ascending.

    >>> number_in_source(np.array([0, 1, 2]), malformed=np.array([1, 2]))
    array([0, 3, 4])
    """
    return rows + np.searchsorted(malformed - np.arange(len(malformed)), rows, side="right")


EntitySide = Literal["user", "item"]
MALFORMED = "malformed line"
_REJECTED = ("table", "row", "reason", "user", "item", "scenario", "time")


def rejects(columns: dict[str, Any]) -> pl.DataFrame:
    """A frame of rows set aside, with the columns of `_REJECTED`: row is int64, all others text; null if not given."""
    given = pl.DataFrame({name: pl.Series(name, values) for name, values in columns.items()})
    return given.select(
        (pl.col(c) if c in columns else pl.lit(None).alias(c)).cast(pl.Int64 if c == "row" else pl.String)
        for c in _REJECTED
    )


@dataclass(frozen=True)
class Table:
    """A lazy frame with the name (a path or a description) that error messages use.

    `malformed` has the row numbers in the source, from 0, of rows that could not be read and are not in the frame.
    `keeps` keeps an object alive as long as the table, such as the temporary folder that the frame reads from.
    `remarks` says of columns what is odd about them.
    """

    name: str
    frame: pl.LazyFrame
    malformed: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    keeps: Any = None
    remarks: Mapping[str, str] = field(default_factory=dict)

    def replace(self, frame: pl.LazyFrame) -> Table:
        """The same table with another frame, such as one with further columns or fewer rows."""
        return replace(self, frame=frame)

    def numbers(self, rows: pl.Series) -> pl.Series:
        """Convert row numbers in the frame to row numbers in the source, which also count malformed rows."""
        return pl.Series(rows.name, number_in_source(rows.to_numpy().astype(np.int64), self.malformed))

    def set_aside(self, part: str) -> pl.DataFrame:
        """The malformed rows in the format of `rejected.parquet`; `part` is the table's role."""
        count = len(self.malformed)
        return rejects({"table": [part] * count, "row": self.malformed, "reason": [MALFORMED] * count})

    def columns(self) -> list[str]:
        """The column names; raises `InputError` where the file cannot be read."""
        try:
            return self.frame.collect_schema().names()
        except _UNREADABLE as error:
            raise unreadable(self.name, error) from error

    def require(self, column: str, role: str) -> None:
        """Raise `InputError` unless the table has `column`, with one plain value per row; the error names `role`."""
        columns = self.columns()
        if column not in columns:
            raise InputError(f"{self.name}: has no column {column!r} ({role}); {nearest(column, columns)}")
        if (dtype := self.frame.collect_schema()[column]).is_nested():
            raise InputError(f"{self.name}: column {column!r} ({role}) is a {dtype}; expected one plain value a row")

    def collect(self, *expressions: pl.Expr) -> pl.DataFrame:
        """Evaluate a selection, streaming; raises `InputError` where the file is damaged.

        The result is one chunk. Streaming returns many, in which looking up rows takes several times as long.
        """
        try:
            return self.frame.select(*expressions).collect(engine="streaming").rechunk()
        except _UNREADABLE as error:
            raise unreadable(self.name, error) from error


@dataclass(frozen=True)
class Tables:
    """The input of `prepare`: impressions and optional further tables.

    `users` and `items` have one row per id, which is in the schema's user or item column. `positives` is the history
    (user, item, scenario, time and optionally `behaviour`), if it has more than the positive impressions. `events` are
    further positives, such as those reported to a server; they are added to the history. `recipe` says how the tables
    were made and is kept in the manifest. `negatives` sets the sampling of negatives for a log that has none.
    `rejected` lists the rows that the source itself set aside (see `rejects`), out of `read` rows.
    """

    schema: Schema
    interactions: Table
    users: Table | None = None
    items: Table | None = None
    positives: Table | None = None
    events: Table | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    negatives: Negatives | None = None
    rejected: pl.DataFrame | None = None
    read: int = 0

    def of(self, side: EntitySide) -> Table | None:
        """The side's own table: `users` or `items`."""
        return self.users if side == "user" else self.items

    def whole_ids(self) -> frozenset[EntitySide]:
        """The sides whose ids fit int64 in every table; integers are looked up faster than texts."""
        columns = self.schema.columns
        logs = [table for table in (self.interactions, self.positives, self.events) if table is not None]
        keys: dict[EntitySide, str] = {"user": columns.user, "item": columns.item}
        found: set[EntitySide] = set()
        for side, key in keys.items():
            own = self.of(side)
            tables = logs if own is None else [*logs, own]
            types = [t.frame.collect_schema()[key] if key in t.columns() else None for t in tables]
            if all(t is not None and fits_int64(t) for t in types):
                found.add(side)
        return frozenset(found)
