"""What people did, as the tables tell it: the log of impressions, its history, and events beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from llm4msr.data.ordering import EVENT_ORDER, in_order
from llm4msr.data.tables import Tables
from llm4msr.data.validate import accept_interactions, accept_positives, check_rejected
from llm4msr.errors import InputError

_EVENT = ("user", "item", "scenario", "time", "behaviour")


@dataclass(frozen=True)
class Logs:
    """Rows in normal form (see `Accepted`): of the log, of a history of its own and of events where there are any.

    `rejected` is what was set aside of them, and of the tables by their source.
    """

    impressions: pl.DataFrame
    history: pl.DataFrame | None
    events: pl.DataFrame | None
    rejected: pl.DataFrame

    @property
    def seen(self) -> list[pl.DataFrame]:
        """All rows that name users and items, those of the log first."""
        return [rows for rows in (self.impressions, self.history, self.events) if rows is not None]

    def positives(self, rows: pl.DataFrame, coded: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
        """The whole history in its order: `rows` are the log's, `coded` and in order, and `coded` does so to others."""
        if self.history is None:  # the log's rows of a user are in order of time
            found = in_order(rows.filter(pl.col("behaviour") >= 0).select(_EVENT), EVENT_ORDER, known=2)
        else:
            found = coded(self.history).select(_EVENT).sort(EVENT_ORDER)
        if self.events is None:
            return found
        told = coded(self.events).select(_EVENT).unique()  # the log may have some of them by now
        return pl.concat([found, told.join(found, on=_EVENT, how="anti")]).sort(EVENT_ORDER)


def read_logs(tables: Tables, max_rejected: float, report: Callable[[str], None]) -> Logs:
    """Check all rows.

    Raises `InputError` for a missing column, and where more than the share `max_rejected` of a table cannot be used.
    """
    schema, whole = tables.schema, tables.whole_ids()
    report("reading and checking the interactions")
    accepted = [accept_interactions(tables.interactions, schema, whole)]
    more: list[pl.DataFrame | None] = []
    for part, what, table in (
        ("positives", "history of positives", tables.positives),
        ("events", "events", tables.events),
    ):
        if table is not None:
            report(f"reading and checking the {what}")
            accepted.append(accept_positives(table, schema, whole, part))
        more.append(None if table is None else accepted[-1].rows)
    aside = [] if tables.rejected is None else [tables.rejected]
    for lines in aside:
        check_rejected(lines, tables.read, max_rejected)
    rejected = pl.concat([*aside, *(found.rejected for found in accepted)])
    read = [table for table in (tables.interactions, tables.positives, tables.events) if table is not None]
    for table, found in zip(read, accepted, strict=True):  # a large history must not hide a broken log
        check_rejected(found.rejected, found.rejected.height + found.rows.height, max_rejected, table.name)
    impressions = accepted[0].rows
    if impressions.is_empty():
        raise InputError(f"{tables.interactions.name}: no rows are left to train on ({rejected.height} were set aside)")
    history, events = more
    return Logs(impressions, history, events, rejected)
