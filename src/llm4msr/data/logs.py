"""What people did, as the tables tell it: the log of impressions, its history, and events beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from llm4msr.data.ordering import EVENT_ORDER, in_order
from llm4msr.data.tables import Tables
from llm4msr.data.validate import Accepted, accept_interactions, accept_positives, check_rejected
from llm4msr.errors import InputError

_EVENT = ("user", "item", "scenario", "time", "behaviour")


@dataclass(frozen=True)
class Logs:
    """The rows of the log, of a history of its own where there is one, and of events; each accepted or set aside."""

    impressions: Accepted
    history: Accepted | None
    events: Accepted | None

    @property
    def seen(self) -> list[pl.DataFrame]:
        """All rows that name users and items, those of the log first."""
        return [self.impressions.rows, *(table.rows for table in (self.history, self.events) if table is not None)]

    @property
    def rejected(self) -> list[pl.DataFrame]:
        """What was set aside of each."""
        tables = (self.impressions, self.history, self.events)
        return [table.rejected for table in tables if table is not None]

    def positives(self, rows: pl.DataFrame, coded: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
        """The whole history in its order: `rows` are the log's, `coded` and in order, and `coded` does so to others."""
        if self.history is None:  # the log's rows of a user are in order of time
            found = in_order(rows.filter(pl.col("behaviour") >= 0).select(_EVENT), EVENT_ORDER, known=2)
        else:
            found = coded(self.history.rows).select(_EVENT).sort(EVENT_ORDER)
        if self.events is None:
            return found
        told = coded(self.events.rows).select(_EVENT).unique()  # the log may have some of them by now
        return pl.concat([found, told.join(found, on=_EVENT, how="anti")]).sort(EVENT_ORDER)


def read_logs(tables: Tables, max_rejected: float, report: Callable[[str], None]) -> Logs:
    """Check all rows. Raises `InputError` for a missing column, and where more than `max_rejected` cannot be used."""
    schema, whole = tables.schema, tables.whole_ids()
    report("reading and checking the interactions")
    impressions = accept_interactions(tables.interactions, schema, whole)
    history = events = None
    if tables.positives is not None:
        report("reading and checking the history of positives")
        history = accept_positives(tables.positives, schema, whole)
    if tables.events is not None:
        report("reading and checking the events")
        events = accept_positives(tables.events, schema, whole, "events")
    logs = Logs(impressions, history, events)
    rejected = pl.concat([*([] if tables.rejected is None else [tables.rejected]), *logs.rejected])
    check_rejected(rejected, rejected.height + sum(rows.height for rows in logs.seen), max_rejected)
    if impressions.rows.is_empty():
        raise InputError(f"{tables.interactions.name}: no rows are left to train on ({rejected.height} were set aside)")
    return logs
