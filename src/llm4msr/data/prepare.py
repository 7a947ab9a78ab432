"""Turn raw tables into a prepared folder: check rows, split them by time, encode column by column."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4msr.cores import usable_cores
from llm4msr.data.entities import Entities, gather_entities
from llm4msr.data.fields import EncodedField, FieldRecord, check_numbers, encode_field
from llm4msr.data.given_away import check_context_fields, check_item_fields, with_all_items
from llm4msr.data.logs import read_logs
from llm4msr.data.negatives import Negatives, with_negatives
from llm4msr.data.ordering import ROW_ORDER, in_order
from llm4msr.data.prepared import KIND, VERSION, PreparedData
from llm4msr.data.remarks import (
    Report,
    tell_of_chosen_again,
    tell_of_missing_negatives,
    tell_of_missing_rows,
    tell_of_repeats,
    warn_of_field,
    warn_of_files,
)
from llm4msr.data.split import PARTS, Split, chronological_split
from llm4msr.data.tables import EntitySide, Table, Tables
from llm4msr.data.values import Occurrences, RowValues
from llm4msr.errors import InputError, nearest
from llm4msr.folders import written_aside
from llm4msr.schema import FieldSpec, Schema, Side
from llm4msr.seals import seal

_COMPRESSION = 1
"""The compression level of the Parquet files; higher levels take longer and make them hardly smaller."""


def prepare(
    tables: Tables,
    out: Path,
    *,
    ratios: tuple[float, float, float] = (8, 1, 1),
    history_share: float = 0.0,
    negatives: Negatives | None = None,
    max_rejected: float = 0.05,
    overwrite: bool = False,
    report: Report = lambda message: None,
) -> PreparedData:
    """Write the prepared folder `out` and open it.

    Rows are sorted by time and split by `ratios`; vocabularies and statistics are fitted on the training part only.
    The first `history_share` of the rows, by time, is only history: later rows know its positives, but no model is
    trained on it. `negatives` sets how negatives are sampled for each positive, for a log that has none; the default is
    the source's own setting. Rows that cannot be used are set aside in `rejected.parquet`; if they are more than the
    share `max_rejected`, the run stops with an error. `report` is called with a message for each step. The folder is
    complete or absent.

    Raises `InputError` for anything wrong with the tables, naming file, column and row.
    """
    negatives = negatives or tables.negatives
    if negatives is not None:
        tables = with_all_items(tables, report)
    with written_aside(out, replaces=KIND if overwrite else None) as folder:
        content = _content(tables, ratios, history_share, negatives, max_rejected, report)
        fields = _write(content, tables, folder, report)
        report("sealing the folder")
        manifest = {
            "schema": tables.schema.model_dump(mode="json"),
            "recipe": tables.recipe,
            "negatives": None if negatives is None else negatives.model_dump(mode="json"),
            "ratios": list(ratios),
            "history_share": history_share,
            "split": vars(content.split),
            "counts": _counts(content, tables.schema),
            "fields": fields,
        }
        seal(folder, KIND, VERSION, manifest)
    return PreparedData.open(out, check=False)  # the checksums were computed a moment ago


@dataclass(frozen=True)
class _Content:
    """What a prepared folder is made of: the rows in order of time with their split, and the tables beside them."""

    rows: pl.DataFrame
    split: Split
    users: Entities
    items: Entities
    positives: pl.DataFrame
    rejected: pl.DataFrame


def _content(
    tables: Tables,
    ratios: tuple[float, float, float],
    history_share: float,
    negatives: Negatives | None,
    max_rejected: float,
    report: Report,
) -> _Content:
    """Read and check everything, and split the rows."""
    _check_field_columns(tables)
    warn_of_files(tables, report)
    logs = read_logs(tables, max_rejected, report)
    report("collecting users and items")
    users, items = gather_entities(tables, "user", logs.seen), gather_entities(tables, "item", logs.seen)
    tell_of_missing_rows(tables, logs, (users, items), report)
    rejected = pl.concat([logs.rejected, users.rejected, items.rejected])
    logged = in_order(_coded(logs.impressions, users, items), ROW_ORDER)
    tell_of_repeats(logged, tables.interactions.name, report)
    positives = logs.positives(logged, lambda others: _coded(others, users, items))
    rows = _after_history(logged, history_share)
    split = chronological_split(rows["time"].to_numpy(), ratios)
    if negatives is not None:
        report("sampling negatives")
        check_item_fields(tables)
        check_context_fields(tables, rows[: split.valid].filter(pl.col("label") == 1), negatives, report)
        rows, again = with_negatives(rows, split, negatives, [logged.filter(pl.col("label") == 1), positives])
        tell_of_missing_negatives(rows, negatives.ratio, report)
        tell_of_chosen_again([tables.schema.scenarios[d].title for d in again], report)
        split = split.over(rows["time"].to_numpy())
    return _Content(rows, split, users, items, positives, rejected)


def _write(content: _Content, tables: Tables, folder: Path, report: Report) -> dict[str, Any]:
    """Write tables and columns, side by side; return what the manifest says of each field."""
    rows, split, users, items = content.rows, content.split, content.users, content.items
    (folder / "columns").mkdir()
    (folder / "vocabulary").mkdir()
    frames = {"items": items.frame, "users": users.frame, "positives": content.positives, "rejected": content.rejected}
    records: dict[str, Any] = {}
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        written = [
            pool.submit(frame.write_parquet, folder / f"{name}.parquet", compression_level=_COMPRESSION)
            for name, frame in frames.items()
        ]
        written += [
            pool.submit(np.save, folder / "columns" / f"{name}.npy", rows[name].to_numpy())
            for name in ("user", "item", "scenario", "time", "label")
        ]
        sides = {e.side: (e, Occurrences(rows[e.side].to_numpy(), e.frame.height, split)) for e in (users, items)}

        def encoded(spec: FieldSpec) -> FieldRecord:
            table, values = _values(spec, tables, rows["row"], sides)
            field = encode_field(spec, values, split, table.name)
            _save(field, folder)
            return field.record.model_copy(update={"of_rows": values.occurrences is None})

        found = pool.map(encoded, tables.schema.fields)
        for spec in tables.schema.fields:
            report(f"encoding the field {spec.name}")
            record = next(found)
            records[spec.name] = record.model_dump(mode="json", exclude_defaults=True)
            warn_of_field(spec.name, record, report)
        for done in written:
            done.result()
    return records


def _check_field_columns(tables: Tables) -> None:
    """Every field and text column must exist in the table of its side or in the interactions."""
    schema = tables.schema
    wanted: list[tuple[Side, str, str]] = [(f.side, f.source, f"the field {f.name!r}") for f in schema.fields]
    wanted += [("item", c, "item_text") for c in schema.item_text.columns]
    wanted += [("user", c, "user_text") for c in schema.user_text.details]
    for side, column, role in wanted:
        table = None if side == "context" else tables.of(side)
        known = tables.interactions.columns() + ([] if table is None else table.columns())
        if column not in known:
            places = tables.interactions.name + ("" if table is None else f", {table.name}")
            more = f"; is it in a table of {side}s? Give it, too" if table is None and side != "context" else ""
            raise InputError(f"{places}: no column {column!r} ({role}); {nearest(column, dict.fromkeys(known))}{more}")


def _coded(rows: pl.DataFrame, users: Entities, items: Entities) -> pl.DataFrame:
    """Replace the ids of users and items by their codes."""
    return rows.with_columns(users.encode(rows["user"]), items.encode(rows["item"]))


def _after_history(rows: pl.DataFrame, share: float) -> pl.DataFrame:
    """Drop the first `share` of the rows, which are in order of time. Rows with the same time stay together."""
    if not 0 <= share < 1:
        raise InputError(f"the share of history {share:g}: expected a number from 0 to less than 1")
    if share == 0:
        return rows
    cut = rows["time"][int(rows.height * share)]
    return rows.filter(pl.col("time") >= cut)


def _values(
    spec: FieldSpec, tables: Tables, order: pl.Series, sides: Mapping[EntitySide, tuple[Entities, Occurrences]]
) -> tuple[Table, RowValues]:
    """The field's raw values over the rows, from the table of its side or from the interactions."""
    if spec.side != "context":
        entity, occurrences = sides[spec.side]
        own = tables.of(spec.side)
        home = own if own is not None and spec.source in own.columns() else tables.interactions
        is_key = spec.source == entity.key_column
        if is_key or home is own:  # a column of the interactions may differ from row to row
            column = entity.frame[spec.side if is_key else spec.source]
            if spec.kind == "numeric":
                check_numbers(spec, column, home.name)  # also of those without a row, which are served too
            return home, RowValues(column.gather(occurrences.seen), occurrences, are_ids=is_key)
    values = tables.interactions.collect(pl.col(spec.source)).to_series()
    return tables.interactions, RowValues(values.gather(order))


def _save(field: EncodedField, folder: Path) -> None:
    np.save(folder / "columns" / f"field.{field.spec.name}.npy", field.column)
    if field.vocabulary is not None:
        field.vocabulary.save(folder / "vocabulary" / f"{field.spec.name}.parquet")


def _counts(content: _Content, schema: Schema) -> dict[str, Any]:
    rows, split = content.rows, content.split
    by_scenario: dict[str, dict[str, dict[str, int]]] = {}
    scenario, label = rows["scenario"].to_numpy(), rows["label"].to_numpy()
    for index, declared in enumerate(schema.scenarios):
        parts: dict[str, dict[str, int]] = {}
        for part in PARTS:
            first, last = split.range(part)
            chosen = scenario[first:last] == index
            parts[part] = {"rows": int(chosen.sum()), "positive": int(label[first:last][chosen].sum())}
        by_scenario[declared.value] = parts
    reasons = content.rejected.group_by("reason").len().sort("reason")
    return {
        "rows": rows.height,
        "users": content.users.frame.height,
        "items": content.items.frame.height,
        "positives": content.positives.height,
        "scenarios": by_scenario,
        "rejected": dict(zip(reasons["reason"].to_list(), reasons["len"].to_list(), strict=True)),
    }
