"""Fields that would give the label away in a log with sampled negatives.

A sampled negative is an item that someone chose in the same part of the split, with the context of its positive.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from llm4msr.data.negatives import Negatives
from llm4msr.data.remarks import Report
from llm4msr.data.tables import Tables
from llm4msr.errors import InputError
from llm4msr.schema import FieldSpec

_OF_THE_ITEM, _LIKE_THE_ITEM = 0.8, 0.2
"""A context field this dependent on the item is refused, or gets a warning: 0 is chance, 1 one value for each item."""
_FEWEST, _LITTLE = 200, 0.05
"""Nothing is said with fewer rows of items that have several, or if the share differs by less from that by chance."""


def with_all_items(tables: Tables, report: Report) -> Tables:
    """The tables with item fields that keep every value of the training part.

    An item with a single training row always has the label 1, and `min_count = 2` would teach that unknown items are
    chosen.
    """
    rare = [f.name for f in tables.schema.fields if f.side == "item" and f.kind != "numeric" and f.min_count > 1]
    if rare:
        report(
            f"min_count does not hold for {', '.join(rare)}: with sampled negatives, the rarest values tell the label"
        )
    fields = tuple(f.model_copy(update={"min_count": 1}) if f.name in rare else f for f in tables.schema.fields)
    return replace(tables, schema=tables.schema.model_copy(update={"fields": fields}))


def check_item_fields(tables: Tables) -> None:
    """Raise `InputError` unless item fields come from the table of items: a negative has no row in the interactions."""
    schema = tables.schema
    known = [schema.columns.item, *([] if tables.items is None else tables.items.columns())]
    for spec in schema.fields:
        if spec.side == "item" and spec.source not in known:
            raise InputError(
                f"{tables.interactions.name}: the item field {spec.name!r} (column {spec.source!r}) is in the "
                "interactions only, so a sampled negative would have its positive's value; give a table of items"
            )


def check_context_fields(tables: Tables, training: pl.DataFrame, negatives: Negatives, report: Report) -> None:
    """Raise `InputError` if the values of a context field go with the item, such as its shelf; warn if they partly do.

    A negative has its positive's context, so a model would see which item the context belongs to. `training` has the
    positives of the training part in order of time (user, item, scenario, and the number of the row in the
    interactions). What cannot be seen is a value that is different in nearly every row, as a price with noise.
    """
    stretch = (pl.int_range(pl.len()).over("scenario") // negatives.window).alias("stretch")
    rows = training.with_columns(stretch)
    for spec in tables.schema.fields:
        if spec.side != "context" or spec.source == tables.schema.columns.scenario:
            continue
        values = tables.interactions.collect(pl.col(spec.source)).to_series().gather(training["row"])
        found = _dependence(rows.with_columns(value=pl.when(values.is_not_null()).then(values.hash())))
        told = f"{_field(tables, spec)} goes with the item, and a sampled negative has its positive's value"
        if found >= _OF_THE_ITEM:
            raise InputError(
                f"{told}; declare it as an item field, in a table of items, or leave it out (or, if items are short-"
                "lived and it goes with the time, take a smaller --window)"
            )
        if found >= _LIKE_THE_ITEM:
            report(f"warning: {told} ({found:.0%} of what one value for each item would be), which may tell the label")


def _field(tables: Tables, spec: FieldSpec) -> str:
    return f"{tables.interactions.name}: the context field {spec.name!r} (column {spec.source!r})"


def _dependence(frame: pl.DataFrame) -> float:
    """How far values go with items: 0 as by chance, 1 if each item has one value.

    The greater of two: over all rows, and over those that have another value than the most frequent one (or none).
    A value that goes with the user goes with the item only by way of the user, who is the same in a negative.
    """
    usual = frame["value"].mode().min() if frame.height else None
    unusual = frame.filter(pl.col("value").is_not_null() & pl.col("value").ne_missing(usual))
    found = max(_beyond_chance(frame, "stretch"), _beyond_chance(unusual, "stretch"))
    several = frame.filter(pl.len().over("scenario", "user") > 1)
    if found >= _LIKE_THE_ITEM and several.height >= _FEWEST:
        found = min(found, max(_beyond_chance(rows, "user") for rows in (several, unusual)))
    return found


def _beyond_chance(frame: pl.DataFrame, within: str) -> float:
    """The share of rows with the most frequent value of their item, beside that of values shuffled `within` groups.

    0 if there are few rows, or if the two differ little. Items with one row say nothing.
    """
    frame = frame.filter(pl.len().over("scenario", "item") > 1)
    if frame.height < _FEWEST:
        return 0.0
    shuffled = frame.with_columns(pl.col("value").shuffle(seed=0).over("scenario", within))
    share, chance = (_share_of_the_most_frequent(rows) for rows in (frame, shuffled))
    return 0.0 if share - chance < _LITTLE else (share - chance) / (1 - chance)


def _share_of_the_most_frequent(frame: pl.DataFrame) -> float:
    counts = frame.group_by("scenario", "item", "value").len().group_by("scenario", "item").agg(pl.col("len").max())
    return float(counts["len"].sum() / frame.height)
