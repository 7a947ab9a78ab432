"""Checks that nothing from after a row's time reaches it: with planted markers, by brute force, and on the columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.prepared import PreparedData
from llm4msr.data.raw import as_text
from llm4msr.knowledge.composed import composed_tables
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.history import Snapshots, snapshot_times
from llm4msr.knowledge.item_vectors import ItemVectors, trained_items
from llm4msr.knowledge.prompts import PromptWriter
from llm4msr.knowledge.states import COMPOSED, Composed
from llm4msr.report.sheets import Cell, Sheet
from llm4msr.times import DAY

MARKER = "zqmarker"


@dataclass(frozen=True)
class Check:
    """One check: its name, whether it held, and what it saw."""

    name: str
    held: bool
    seen: str


@dataclass(frozen=True)
class _Plant:
    """Data with a marked item in the histories of n users; `user`, `scenario` and `time` `(n,)` describe its events."""

    data: PreparedData
    item: int
    user: NDArray[np.int32]
    scenario: NDArray[np.int16]
    time: NDArray[np.int64]


def audit(data: PreparedData, config: KnowledgeConfig, *, snapshots: Snapshots, users: int = 100) -> list[Check]:
    """Check that vocabularies, statistics, prompts and states know nothing from after their time.

    A marked item is put into the histories of up to `users` users, each at the time of one of the user's rows. One copy
    of the data takes rows of any part for this, another takes rows of the test part. A check also fails if the marker
    is missing where it should be known. If it should be known nowhere (for example in the states of other scenarios,
    with only one scenario), the check holds and says so.
    """
    anywhere = _plant(data, users, 0)
    late = _plant(data, users, data.split.test)
    return [
        _vocabularies(data),
        _numbers(data),
        _item_statistics(data, late),
        _prompts(data, anywhere, snapshots),
        *(_states(anywhere, config, source) for source in COMPOSED),
        *(_brute_force(data, config, source, users) for source in COMPOSED),
    ]


def checks_sheet(checks: list[Check]) -> Sheet:
    """The checks as a table."""
    lines = [[Cell(c.name), Cell("yes" if c.held else "NO", not c.held), Cell(c.seen)] for c in checks]
    return Sheet("Nothing from after a row's time reaches it", ["what", "holds", "seen"], lines, 3)


def _plant(data: PreparedData, users: int, first_row: int) -> _Plant:
    random = np.random.default_rng(0)
    rows = random.permutation(np.arange(first_row, data.rows))
    _, places = np.unique(data.user[rows], return_index=True)  # one row a user
    chosen = np.sort(rows[np.sort(places)[:users]])
    types = data.items.schema
    said = [c for c in data.schema.item_text.columns if c in types and not types[c].is_nested()]
    items = data.items.with_columns(as_text(pl.col(c), types[c]) for c in said)
    texts = [c for c in items.columns if items.schema[c] == pl.String]
    marked = items.head(1).with_columns(pl.lit(MARKER).alias(c) for c in texts)
    item = data.items.height
    columns = {
        "user": data.user[chosen],
        "item": np.full(len(chosen), item),
        "scenario": data.scenario[chosen],
        "time": data.time[chosen],
        "behaviour": np.zeros(len(chosen), np.int8),
    }
    events = pl.DataFrame(
        [pl.Series(name, values).cast(data.positives.schema[name]) for name, values in columns.items()]
    )
    planted = data.with_history(
        pl.concat([data.positives, events.select(data.positives.columns)]), pl.concat([items, marked])
    )
    return _Plant(planted, item, data.user[chosen], data.scenario[chosen], data.time[chosen])


def _vocabularies(data: PreparedData) -> Check:
    """Every id of a vocabulary occurs in a training row, except 0, the id of unknown values."""
    strange = 0
    names: list[str] = []
    for kind in ("categorical", "multi"):
        for spec in data.fields_of(kind):
            column = np.asarray(data.field(spec.name))
            trained = np.zeros(data.vocabulary_size(spec.name), dtype=bool)
            part = column[: data.split.valid]
            trained[part[part >= 0]] = True
            trained[0] = True
            if count := int((~trained).sum()):
                strange, names = strange + count, [*names, spec.name]
    seen = f"{strange} ids without a training row" + (f" in {', '.join(names)}" if names else "")
    return Check("vocabularies hold values of the training part alone", strange == 0, seen)


def _numbers(data: PreparedData) -> Check:
    """A numeric field has mean 0 and deviation 1 over the training part, not over all rows."""
    worst = 0.0
    fields = data.fields_of("numeric")
    for spec in fields:
        part = np.asarray(data.field(spec.name))[: data.split.valid]
        part = part[np.isfinite(part)].astype(np.float64)
        if len(part) and part.std() > 0:
            worst = max(worst, abs(float(part.mean())), abs(float(part.std()) - 1))
    seen = f"{len(fields)} fields, largest difference {worst:.1e}"
    return Check("numbers are standardised by the training part alone", worst < 1e-3, seen)


def _item_statistics(data: PreparedData, late: _Plant) -> Check:
    """An item that occurs only in the test part is not among the items that vectors are standardised by."""
    before, after = trained_items(data), trained_items(late.data)
    held = not after[late.item] and bool((before == after[: late.item]).all())
    return Check(
        "vectors are standardised by items of the training part alone",
        held,
        f"an item of the test part is {'not ' if not after[late.item] else ''}among {int(after.sum())} fitted on",
    )


def _prompts(data: PreparedData, plant: _Plant, snapshots: Snapshots) -> Check:
    """The marker is in a user's prompts from after its time, not in earlier ones, nor in the scenarios' prompts."""
    # Long enough that later positives push the marker out of no prompt.
    longest = int(plant.data.positives.group_by("user", "scenario").len()["len"].max() or 1)  # type: ignore[arg-type]
    writer, plain = PromptWriter(plant.data, history=longest), PromptWriter(data, history=longest)
    wrong, early, later = 0, 0, 0
    moments = snapshot_times(data, snapshots)
    moments = sorted({*moments, *(int(t) for t in plant.time[:20]), int(data.time[-1]) + 1})
    for user, time in zip(plant.user.tolist(), plant.time.tolist(), strict=True):
        for moment in moments:
            has = MARKER in (writer.user(user, moment) or "")
            early, later = early + (time >= moment), later + (time < moment)
            wrong += has != (time < moment)
    same = writer.scenarios() == plain.scenarios()
    seen = f"{early} prompts before and {later} after the marker, {wrong} wrong"
    return Check("prompts know what was before their time alone", wrong == 0 and same and later > 0, seen)


def _states(plant: _Plant, config: KnowledgeConfig, source: Composed) -> Check:
    """With vector 1 for the marked item and 0 for all others, a state is above 0 only in rows after the marker."""
    data = plant.data
    marked = np.zeros((data.items.height, 1), dtype=np.float32)
    marked[plant.item] = 1
    items = ItemVectors.of(marked)
    plain = KnowledgeConfig(half_life_days=1e6, behaviour_weights={}, dimensions=config.dimensions)
    table = composed_tables(data, items, plain, [source])[source]
    row_user, row_time, row_scenario = np.asarray(data.user), np.asarray(data.time), np.asarray(data.scenario)
    at = np.full(data.users.height, np.iinfo(np.int64).max)
    where = np.full(data.users.height, -1)
    at[plant.user], where[plant.user] = plant.time, plant.scenario
    rows = np.flatnonzero(where[row_user] >= 0)
    value = table.vectors[table.index[rows], 0]
    here = where[row_user[rows]] == row_scenario[rows]
    reached = (row_time[rows] > at[row_user[rows]]) & (here if source == "own" else ~here)
    wrong = int(((value > 0) != reached).sum())
    seen = f"{len(rows)} rows, {int(reached.sum()) or 'none'} of them after the marker, {wrong} wrong"
    return Check(f"composed states ({source}) know what was before their rows alone", wrong == 0, seen)


def _brute_force(data: PreparedData, config: KnowledgeConfig, source: Composed, count: int) -> Check:
    """A sample of states equals the weighted mean over the raw events strictly before the row."""
    vectors = np.random.default_rng(1).standard_normal((data.items.height, 3)).astype(np.float32)
    items = ItemVectors.of(vectors)
    plain = KnowledgeConfig(half_life_days=config.half_life_days)
    table = composed_tables(data, items, plain, [source])[source]
    some = _with_a_history(data, source)
    random = np.random.default_rng(2)
    rows = np.concatenate([random.permutation(data.rows)[: count // 2], random.permutation(some)[: count // 2]])
    worst, known = 0.0, 0
    for row in rows:
        now, here = int(data.time[row]), int(data.scenario[row])
        events = data.positives.filter((pl.col("user") == int(data.user[row])) & (pl.col("time") < now))
        events = events.filter((pl.col("scenario") == here) == (source == "own"))
        if events.is_empty():
            worst = max(worst, float(table.index[row] != 0))
            continue
        weight = 2.0 ** (-(now - events["time"].to_numpy()) / (config.half_life_days * DAY))
        if not weight.sum():  # all events are so old that their weights are 0
            continue
        mean = (weight[:, None] * vectors[events["item"].to_numpy()]).sum(0) / weight.sum()
        worst = max(worst, float(np.abs(table.vectors[table.index[row]] - mean).max()))
        known += 1
    seen = f"{len(rows)} rows, {known or 'none'} with a history, largest difference {worst:.1e}"
    held = worst < 1e-4 and bool(known or not len(some))
    return Check(f"composed states ({source}) equal brute force over the raw events", held, seen)


def _with_a_history(data: PreparedData, source: Composed) -> NDArray[np.int64]:
    """The rows whose user has an earlier positive, in the row's own scenario or in another one, as `source` says."""
    row = ["user", "scenario"]
    columns = {"user": data.user, "scenario": data.scenario, "now": data.time}
    rows = pl.DataFrame({name: np.asarray(column) for name, column in columns.items()})
    first = data.positives.group_by(row).agg(pl.col("time").min()).with_columns(pl.col(row).cast(pl.Int64))
    rows = rows.with_columns(pl.col(row).cast(pl.Int64))
    if source == "own":
        began = rows.join(first, on=row, how="left", maintain_order="left")["time"]
    else:  # the user's earliest scenario or, if it is the row's own, the second
        two = pl.col("time").get(1, null_on_oob=True).alias("second")
        users = first.sort("time").group_by("user", maintain_order=True).agg(pl.col("scenario", "time").first(), two)
        there = rows.join(users, on="user", how="left", maintain_order="left", suffix="_first")
        own = pl.col("scenario") == pl.col("scenario_first")
        began = there.select(pl.when(own).then("second").otherwise("time")).to_series()
    return np.flatnonzero((rows["now"] > began).fill_null(False).to_numpy())
