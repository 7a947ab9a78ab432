"""Reports of `prepare` about data that can be used but may not be what the user intended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import polars as pl

from llm4msr.data.entities import Entities
from llm4msr.data.fields import FieldRecord
from llm4msr.data.logs import Logs
from llm4msr.data.tables import Table, Tables
from llm4msr.errors import InputError

Report = Callable[[str], None]

_SAME = ("time", "user", "item", "scenario")
_MISSING = 0.01
"""The share of negatives that may be missing without a warning."""
_DRIFT = 0.5
"""A field gets a warning if more than this share of its test rows has an unknown value."""


def warn_of_files(tables: Tables, report: Report) -> None:
    """Report what is odd about the columns that are read, such as that some files of a table lack one."""
    given = (tables.interactions, tables.users, tables.items, tables.positives, tables.events)
    for table in (table for table in given if table is not None):
        for column, remark in table.remarks.items():
            if column in tables.schema.read_columns:
                report(f"warning: {table.name}: {remark}")


def tell_of_missing_rows(tables: Tables, logs: Logs, sides: Sequence[Entities], report: Report) -> None:
    """Report how many users or items of the logs have no row in their own table; raises `InputError` if none has."""
    for entities in sides:
        table = tables.of(entities.side)
        if table is not None and entities.without_row:
            of = pl.concat([rows[entities.side] for rows in logs.seen]).n_unique()
            if entities.without_row == of:
                example = _example(entities, table, logs)
                raise InputError(f"{table.name}: no {entities.side} of the logs has a row there{example}")
            warning = "warning: " if 2 * entities.without_row > of else ""
            report(f"{warning}{entities.without_row} of {of} {entities.side}s have no row in {table.name}")


def _example(entities: Entities, table: Table, logs: Logs) -> str:
    """An id of the logs beside one of the table, which may be written in another way; empty if the table has no row."""
    there = table.collect(pl.col(entities.key_column).drop_nulls().head(1)).to_series()
    if there.is_empty():
        return ""
    return f"; are ids written alike? The logs have {logs.impressions[entities.side][0]!r}, the table has {there[0]!r}"


def tell_of_repeats(rows: pl.DataFrame, name: str, report: Report) -> None:
    """Report how many of the `rows` of the table `name`, in `ROW_ORDER`, repeat another one, as after a double join."""
    repeats = rows.select(pl.all_horizontal(pl.col(_SAME) == pl.col(_SAME).shift()).sum()).item()
    if repeats:
        report(
            f"{repeats} of {rows.height} rows of {name} have the user, item, scenario and time of another one; all are "
            "kept"
        )


def tell_of_chosen_again(titles: Sequence[str], report: Report) -> None:
    """Report in which scenarios users choose items again, so that earlier choices may be sampled as negatives."""
    if titles:
        report(f"users choose items again in {', '.join(titles)}: their earlier choices may be negatives there, too")


def tell_of_missing_negatives(rows: pl.DataFrame, ratio: int, report: Report) -> None:
    """Warn if many negatives could not be drawn; `rows` are those of a log of choices, with its negatives."""
    positive = int(rows["label"].sum())
    drawn, wanted = rows.height - positive, ratio * positive
    if drawn < (1 - _MISSING) * wanted:
        report(
            f"warning: only {drawn} of {wanted} negatives could be drawn: too few items in a window that a user has "
            "not chosen; take a larger --window, or fewer --negatives"
        )


def warn_of_field(name: str, record: FieldRecord, report: Report) -> None:
    """Warn of infinite numbers, and of a field whose test rows mostly have values unknown to training."""
    if record.infinite:
        report(f"warning: the field {name} is infinite in {record.infinite} rows; they count as missing")
    unseen = (record.unknown_share or {}).get("test")
    if unseen is not None and unseen > _DRIFT:
        report(
            f"warning: {unseen:.0%} of the test values of the field {name} were not seen in "
            "training; a field that only counts upwards in time is of no use"
        )
