"""The content of a log of events, as tables for the next `prepare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from llm4msr.data.fields import SEPARATOR
from llm4msr.schema import Schema
from llm4msr.serving.fields import raw_text
from llm4msr.serving.log import EventRecord, ItemRecord, read_log, settled_size


def harvest(
    log: Path, schema: Schema, skipped: Callable[[int], None] | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The events of a log, and the new items whose columns it has, each once, under the schema's column names.

    A server may be writing to the log. If the file does not exist, both tables are empty. `skipped` is called with the
    position of each damaged line that whole lines follow; without it such a line raises `InputError`.
    """
    events: dict[EventRecord, None] = {}
    items: dict[str, ItemRecord] = {}
    for record, _ in read_log(log, 0, settled_size(log), skipped) if log.is_file() else ():
        if isinstance(record, EventRecord):
            events[record] = None
        elif record.columns:
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
    new = {columns.item: pl.Series(list(items), dtype=pl.String)}
    for name in dict.fromkeys(name for record in items.values() for name in record.columns):
        if name != columns.item:
            new[name] = _column([record.columns.get(name) for record in items.values()], name, schema)
    return found, pl.DataFrame(new)


def _column(values: list[Any], name: str, schema: Schema) -> pl.Series:
    """A column of JSON values: of the type that all of them have, else of texts as `prepare` writes the values."""
    types = {type(value) for value in values if value is not None}
    dtype: Any = pl.String
    if types == {bool}:
        dtype = pl.Boolean
    elif types and types <= {int, float}:
        dtype = pl.Float64 if float in types else pl.Int64
    elif types == {list}:
        dtype = pl.List(pl.String)
        values = [value if value is None else [raw_text(part) for part in value] for value in values]
    try:
        return pl.Series(values, dtype=dtype)
    except (TypeError, OverflowError):  # mixed types, or whole numbers that do not fit 64 bits
        separators = [f.separator for f in schema.fields if f.source == name and f.kind == "multi"]
        by = next((found for found in separators if found is not None), SEPARATOR)
        return pl.Series([None if value is None else _text(value, by) for value in values], dtype=pl.String)


def _text(value: Any, separator: str) -> str:
    return separator.join(map(raw_text, value)) if isinstance(value, list) else raw_text(value)
