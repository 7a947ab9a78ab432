"""What a log of events holds, as tables for the next `prepare`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from llm4msr.schema import Schema
from llm4msr.serving.log import FILE, EventLog, EventRecord, ItemRecord


def harvest(state: Path, schema: Schema) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The events and the new items of a log, each once, under the schema's column names.

    Where there is no log, as before a server was told of anything, there are none. Raises `InputError` where it is
    damaged.
    """
    events: dict[EventRecord, None] = {}
    items: dict[str, ItemRecord] = {}
    for record, _ in EventLog(state).read(0) if (state / FILE).is_file() else ():
        if isinstance(record, EventRecord):
            events[record] = None
        elif record.columns or record.item not in items:
            items[record.item] = record
    columns = schema.columns
    found = pl.DataFrame(
        {
            columns.user: pl.Series([e.user for e in events], dtype=pl.String),
            columns.item: pl.Series([e.item for e in events], dtype=pl.String),
            columns.scenario: pl.Series([e.scenario for e in events], dtype=pl.String),
            columns.time: pl.Series([e.time for e in events], dtype=pl.Int64).cast(pl.Datetime("us")),
            "behaviour": pl.Series([e.behaviour for e in events], dtype=pl.String),
        }
    )
    rows = [{**record.columns, columns.item: name} for name, record in items.items()]
    new = pl.DataFrame(rows, infer_schema_length=None) if rows else pl.DataFrame(schema={columns.item: pl.String})
    return found, new
