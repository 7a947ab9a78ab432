"""Users and items of a bundle: encoded fields, vocabularies, titles and histories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.fields import encode_fitted
from llm4msr.data.prepared import PreparedData
from llm4msr.data.tables import EntitySide
from llm4msr.schema import FieldSpec
from llm4msr.serving.fields import KINDS, TYPES, is_id, places, vocabulary_table
from llm4msr.serving.lookup import LookupWriter
from llm4msr.serving.trained import Trained

POPULAR = 500
"""The number of a scenario's most shown items that are kept as its candidates."""


def write_fields(trained: Trained, folder: Path, side: EntitySide) -> None:
    """Write the encoded fields of a side: one row per code, and a last row for unknown users or items."""
    data = trained.data
    entities = data.users if side == "user" else data.items
    found: dict[str, list[NDArray[Any]]] = {kind: [] for kind in KINDS}
    for place in places(data.schema).values():
        if place.spec.side == side:
            column = _entity_column(trained, place.spec, side, entities)
            found[place.spec.kind].append(column.reshape(len(column), -1))
    for kind in KINDS:
        empty = np.zeros((entities.height + 1, 0), TYPES[kind])
        np.save(folder / f"{side}s" / f"{kind}.npy", np.concatenate([empty, *found[kind]], 1).astype(TYPES[kind]))


def _entity_column(trained: Trained, spec: FieldSpec, side: EntitySide, entities: pl.DataFrame) -> NDArray[Any]:
    data = trained.data
    record = data.records[spec.name]
    vocabulary = None if spec.kind == "numeric" else data.vocabulary(spec.name)
    name = side if is_id(spec, data.schema) else spec.source
    if name in entities.columns and not record.of_rows:  # a text column of the rows has the earliest row's value
        missing = pl.Series([None], dtype=entities[name].dtype)
        column = encode_fitted(spec, record, vocabulary, pl.concat([entities[name], missing]), f"{side}s.parquet")
        if is_id(spec, data.schema):
            column[-1] = 0
        return column
    missing = pl.Series([None], dtype=pl.Float64 if spec.kind == "numeric" else pl.String)
    blank = encode_fitted(spec, record, vocabulary, missing, spec.name)
    column = np.repeat(blank, entities.height + 1, 0)
    code = np.asarray(data.user if side == "user" else data.item)
    rows = np.flatnonzero(np.asarray(data.time) < trained.moment)
    column[code[rows]] = data.field(spec.name)[rows]  # of several rows the last one wins, which is the latest
    return column


def write_vocabularies(data: PreparedData, lookup: LookupWriter) -> None:
    """Write the vocabularies of all fields; that of an id field is empty, because its value follows from the code."""
    for spec in data.schema.fields:
        if spec.kind != "numeric":
            values = [] if is_id(spec, data.schema) else data.vocabulary(spec.name).values.to_list()
            lookup.numbers(vocabulary_table(spec.name), values, range(1, len(values) + 1))


def titles_of(data: PreparedData) -> list[str]:
    """The items' names for people: the title or category, or else the id."""
    column = data.schema.item_text.title or data.schema.item_text.category
    ids = data.items["item"]
    titles = ids if column is None else data.texts("item", column)
    return titles.zip_with(titles.is_not_null(), ids).to_list()


def write_histories(trained: Trained, folder: Path) -> None:
    """Write every user's positives, and the most shown items of each scenario."""
    events = trained.events()
    offsets = np.searchsorted(events.user, np.arange(trained.data.users.height + 1))
    np.save(folder / "users" / "history_offsets.npy", offsets.astype(np.int64))
    for name in ("time", "item", "scenario", "behaviour"):
        np.save(folder / "users" / f"history_{name}.npy", getattr(events, name))
    data = trained.data
    train = slice(0, data.split.valid)
    scenario, item = np.asarray(data.scenario[train]), np.asarray(data.item[train])
    for d in range(data.scenario_count):
        shown = np.bincount(item[scenario == d], minlength=data.items.height)
        most = np.argsort(-shown, kind="stable")[:POPULAR]
        np.save(folder / "items" / f"popular_{d}.npy", most[shown[most] > 0].astype(np.int32))
