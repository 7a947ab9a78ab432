"""Knowledge as the models see it: tables of states and, for each impression, the state that was true before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError, nearest
from llm4msr.knowledge.controls import (
    count_vectors,
    disturbed,
    history_vectors,
    scenario_counts,
    scenario_items,
    takes_items_place,
)
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.item_vectors import ItemVectors, item_vectors
from llm4msr.knowledge.questions import Level
from llm4msr.knowledge.readings import fingerprint_with
from llm4msr.knowledge.states import States, StateTable, compose
from llm4msr.knowledge.vectors import Reduction

Source = Literal["scenario", "prompted", "own", "others", "item"]


class KnowledgeConfig(BaseModel):
    """How stored vectors become states.

    `dimensions` is what users' and items' vectors are reduced to. `vectors` are the kinds of item vectors that are
    joined (see `item_vectors`), each with an equal share of the dimensions. In composed states an event weighs half
    after `half_life_days`, or after `half_life_events` further events where that is given; `behaviour_weights` makes
    some behaviours weigh more or less than 1, and `counts` adds the logarithm of the number of events to each state.
    `control` replaces the knowledge, to see whether it is the knowledge that helps: see `llm4msr.knowledge.controls`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dimensions: int = Field(default=64, ge=1, le=4096)
    vectors: tuple[str, ...] = Field(default=("llm",), min_length=1)
    half_life_days: float = Field(default=30.0, gt=0)
    half_life_events: float | None = Field(default=None, gt=0)
    behaviour_weights: dict[str, float] = Field(default_factory=dict)
    counts: bool = False
    control: str = "none"
    control_seed: int = Field(default=0, ge=0, lt=2**63)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


@dataclass(frozen=True)
class Knowledge:
    """What a model is given.

    `scenario` is `(D, d)`; `item` has the candidate's vector, index 0 for an item without one; `users` has the
    user-level tables (prompted, own, others) in order. `reductions` is what was fitted, to be saved with the model.
    `leaks` says, where the protocol shows rows what they must not know, that it does.
    """

    scenario: NDArray[np.float32] | None = None
    item: StateTable | None = None
    users: dict[Source, StateTable] = field(default_factory=dict)
    reductions: dict[str, Reduction] = field(default_factory=dict)
    leaks: str = ""


NO_KNOWLEDGE = Knowledge()


def load_knowledge(
    folder: KnowledgeFolder, data: PreparedData, config: KnowledgeConfig, needs: set[Source]
) -> Knowledge:
    """Build the tables that a model `needs`; raises `InputError` where the folder lacks a level."""
    reductions: dict[str, Reduction] = {}
    scenario = None
    if "scenario" in needs:
        raw = _scenario_vectors(folder, data, config)
        reductions["scenario"] = Reduction.fit(raw, 0)
        scenario = _disturbed(reductions["scenario"].apply(raw), np.arange(len(raw)), config, "scenario")
    users: dict[Source, StateTable] = {}
    if "prompted" in needs:
        states, reductions["user"] = prompted_states(folder, data, config)
        users["prompted"] = states.seen_by(np.asarray(data.user), np.asarray(data.time))
    item = None
    if needs & {"own", "others", "item"}:
        items = items_of(folder, data, config)
        reductions |= items.reductions
        for source in ("own", "others"):
            if source in needs:
                users[source] = composed_table(data, items, config, source, reductions)
        if "item" in needs:
            table = np.concatenate([np.zeros((1, items.vectors.shape[1]), dtype=np.float32), items.vectors])
            item = StateTable(table, np.where(items.known[data.item], data.item + 1, 0).astype(np.int32))
    return Knowledge(scenario, item, users, reductions, folder.leaks if "prompted" in needs else "")


def fingerprint(folder: KnowledgeFolder, config: KnowledgeConfig) -> str:
    """Identifies all stored knowledge that the config reads."""
    return fingerprint_with(folder, _kinds(config))


def _kinds(config: KnowledgeConfig) -> tuple[str, ...]:
    """The kinds of item vectors that the config, or the control in its place, reads."""
    return (config.control,) if takes_items_place(config.control) else config.vectors


def _scenario_vectors(
    folder: KnowledgeFolder, data: PreparedData, config: KnowledgeConfig
) -> NDArray[np.float16] | NDArray[np.float32]:
    if config.control == "counts":
        return scenario_counts(data)
    if takes_items_place(config.control):
        return scenario_items(data, item_vectors(folder, data, _kinds(config), config.dimensions).vectors)
    return folder.level("scenario")[1]


def prompted_states(folder: KnowledgeFolder, data: PreparedData, config: KnowledgeConfig) -> tuple[States, Reduction]:
    """The users' states by their prompts, at each snapshot, and how their vectors were reduced."""
    index = folder.subjects("user")
    user, time = index["subject"].to_numpy(), index["time"].to_numpy()
    training = time <= data.split.valid_time
    if config.control == "counts" or takes_items_place(config.control):
        if config.control == "counts":
            raw = count_vectors(data, user, time)
        else:
            items = item_vectors(folder, data, _kinds(config), config.dimensions).vectors
            raw = history_vectors(data, user, time, folder.config.history, items)
        reduction = Reduction.fit(raw[training] if training.any() else raw, config.dimensions)
        vectors = reduction.apply(raw)
    else:
        fitted = training if training.any() else np.ones_like(training)  # `all` has only a snapshot after everything
        _, vectors, reduction = folder.reduced("user", config.dimensions, lambda _: fitted)
    if config.control == "shuffled":
        for moment in np.unique(time):
            there = np.flatnonzero(time == moment)
            vectors[there] = _disturbed(vectors[there], user[there], config, "user")
    else:
        vectors = _disturbed(vectors, user, config, "user")
    if folder.leaks:
        time = np.full_like(time, data.time[0] - 1)  # every row is given the one snapshot, whenever it was made
    order = np.lexsort((time, user))
    return States(user[order], time[order], vectors[order]), reduction


def items_of(folder: KnowledgeFolder, data: PreparedData, config: KnowledgeConfig) -> ItemVectors:
    """The vectors of the items as a config reduces and joins them, or the control in their place."""
    if config.control == "counts":  # says nothing of an item
        return ItemVectors(np.zeros((data.items.height, 1), np.float32), np.zeros(data.items.height, bool), {})
    found = item_vectors(folder, data, _kinds(config), config.dimensions)
    codes = np.flatnonzero(found.known)
    found.vectors[codes] = _disturbed(found.vectors[codes], codes, config, "item")
    return found


def composed_table(
    data: PreparedData,
    items: ItemVectors,
    config: KnowledgeConfig,
    source: Literal["own", "others"],
    reductions: dict[str, Reduction] | None = None,
) -> StateTable:
    """For each scenario the states of its events (`own`), or of those of all the `others`, joined to its rows."""
    events = data.positives
    scenario, item = events["scenario"].to_numpy(), events["item"].to_numpy()
    weight = behaviour_weights(data, config)[events["behaviour"].to_numpy()]
    usable = weight > 0 if config.control == "counts" else (weight > 0) & items.known[item]
    index = np.zeros(data.rows, dtype=np.int32)
    row_scenario = np.asarray(data.scenario)
    found: list[States] = []
    base = 1
    for d in range(data.scenario_count):
        chosen = usable & ((scenario == d) if source == "own" else (scenario != d))
        part = events.filter(pl.Series(chosen))
        states = compose(
            part["user"].to_numpy(),
            part["time"].to_numpy(),
            part["item"].to_numpy(),
            items.vectors,
            config.half_life_days,
            half_life_events=config.half_life_events,
            weight=weight[chosen],
        )
        rows = np.flatnonzero(row_scenario == d)
        seen = states.seen_by(data.user[rows], data.time[rows]).index
        index[rows] = np.where(seen > 0, seen + (base - 1), 0)
        found.append(states)
        base += len(states.vectors)
    vectors = np.concatenate([states.vectors for states in found])
    if config.counts or config.control == "counts":
        count = np.log1p(np.concatenate([states.count for states in found]))[:, None].astype(np.float32)
        before = np.concatenate([states.time for states in found]) < data.split.valid_time
        reduction = Reduction.fit(count[before] if before.any() else count, 0)
        if reductions is not None:
            reductions[f"counts {source}"] = reduction
        count = reduction.apply(count)
        vectors = count if config.control == "counts" else np.concatenate([vectors, count], 1)
    return StateTable(np.concatenate([np.zeros((1, vectors.shape[1]), dtype=np.float32), vectors]), index)


def behaviour_weights(data: PreparedData, config: KnowledgeConfig) -> NDArray[np.float64]:
    """The weight of each behaviour. Raises `InputError` for one that the schema does not have, or below 0."""
    names = [b.name for b in data.schema.behaviours]
    for name, value in config.behaviour_weights.items():
        if name not in names:
            raise InputError(f"behaviour_weights: there is no behaviour {name!r}; {nearest(name, names)}")
        if not 0 <= value < np.inf:
            raise InputError(f"behaviour_weights: {name!r} weighs {value}; expected a number of at least 0")
    return np.array([config.behaviour_weights.get(name, 1.0) for name in names])


def _disturbed(
    vectors: NDArray[np.float32], subjects: NDArray[Any], config: KnowledgeConfig, level: Level
) -> NDArray[np.float32]:
    return disturbed(vectors, subjects, config.control, config.control_seed, level)
