"""The checked logs: the impressions, a separate history and further events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from llm4msr.data.ordering import EVENT_ORDER, in_order
from llm4msr.data.tables import Tables
from llm4msr.data.validate import UNKNOWN_SCENARIO, accept_interactions, accept_positives, check_rejected
from llm4msr.errors import InputError

_EVENT = ("user", "item", "scenario", "time", "behaviour")


@dataclass(frozen=True)
class Logs:
    """Rows in normal form (see `Accepted`): the impressions (the log), and a separate history and events if given.

    `rejected` lists the rows that were set aside, here or by the source.
    """

    impressions: pl.DataFrame
    history: pl.DataFrame | None
    events: pl.DataFrame | None
    rejected: pl.DataFrame

    @property
    def seen(self) -> list[pl.DataFrame]:
        """The frames of all rows that name users and items, the log first."""
        return [rows for rows in (self.impressions, self.history, self.events) if rows is not None]

    def positives(self, rows: pl.DataFrame, coded: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
        """The whole history, in `EVENT_ORDER`.

        `rows` are the log's rows with codes, in `ROW_ORDER`; `coded` replaces the ids of other rows by codes.
        """
        if self.history is None:  # a user's rows are already in order of time
            found = in_order(rows.filter(pl.col("behaviour") >= 0).select(_EVENT), EVENT_ORDER, known=2)
        else:
            found = coded(self.history).select(_EVENT).sort(EVENT_ORDER)
        if self.events is None:
            return found
        told = coded(self.events).select(_EVENT).unique()  # the log may contain some of them by now
        return pl.concat([found, told.join(found, on=_EVENT, how="anti")]).sort(EVENT_ORDER)


def read_logs(tables: Tables, max_rejected: float, report: Callable[[str], None]) -> Logs:
    """Read and check all rows.

    Raises `InputError` for a missing column, if more than the share `max_rejected` of a table's rows cannot be used, or
    if no impression is left.
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
        lines, rows = found.rejected, found.rows.height
        if table is tables.events:  # a server's log names scenarios of earlier schemas for ever
            lines = lines.filter(pl.col("reason") != UNKNOWN_SCENARIO)
        check_rejected(lines, lines.height + rows, max_rejected, table.name)
    impressions = accepted[0].rows
    if impressions.is_empty():
        raise InputError(f"{tables.interactions.name}: no rows are left to train on ({rejected.height} were set aside)")
    history, events = more
    return Logs(impressions, history, events, rejected)
