"""What a log of events holds, as tables for the next `prepare`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from llm4msr.errors import InputError
from llm4msr.schema import Schema
from llm4msr.serving.log import FILE, EventLog, EventRecord, ItemRecord


def harvest(state: Path, schema: Schema) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The events and the new items of a log, each once, under the schema's column names.

    Raises `InputError` where the folder has no log, or the log is damaged.
    """
    if not (state / FILE).is_file():
        raise InputError(f"{state / FILE}: no such log; a server writes it when it is told of events")
    events: dict[EventRecord, None] = {}
    items: dict[str, ItemRecord] = {}
    for record, _ in EventLog(state).read(0):
        if isinstance(record, EventRecord):
            events[record] = None
        elif record.columns or record.item not in items:
            items[record.item] = record
    columns = schema.columns
    return pl.DataFrame(
        {
            columns.user: [e.user for e in events],
            columns.item: [e.item for e in events],
            columns.scenario: [e.scenario for e in events],
            columns.time: pl.Series([e.time for e in events], dtype=pl.Int64).cast(pl.Datetime("us")),
            "behaviour": [e.behaviour for e in events],
        }
    ), pl.DataFrame(
        [{**record.columns, columns.item: name} for name, record in items.items()], infer_schema_length=None
    )
