"""The raw tables that a source hands to `prepare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from llm4msr.errors import InputError, nearest
from llm4msr.schema import Schema


@dataclass(frozen=True)
class Table:
    """A lazy frame and the name (a path, or what it is) that errors call it by."""

    name: str
    frame: pl.LazyFrame

    def columns(self) -> list[str]:
        """The column names; raises `InputError` where the file cannot be read."""
        try:
            return self.frame.collect_schema().names()
        except (pl.exceptions.PolarsError, OSError) as error:
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
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self.unreadable(error) from error

    def unreadable(self, error: Exception) -> InputError:
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

    def named(self) -> list[tuple[str, Table]]:
        """The tables that are present, with their part's name."""
        parts = (
            ("interactions", self.interactions),
            ("users", self.users),
            ("items", self.items),
            ("positives", self.positives),
        )
        return [(name, table) for name, table in parts if table is not None]
