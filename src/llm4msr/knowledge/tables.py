"""Knowledge as the models see it: tables of states and, for each impression, the state that it sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge import Level
from llm4msr.knowledge.composed import composed_tables
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.controls import (
    count_vectors,
    disturbed,
    history_vectors,
    scenario_counts,
    scenario_items,
)
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.item_vectors import ItemVectors, item_vectors
from llm4msr.knowledge.readings import fingerprint_with
from llm4msr.knowledge.states import COMPOSED, Source, States, StateTable
from llm4msr.knowledge.vectors import Reduction


@dataclass(frozen=True)
class Knowledge:
    """The knowledge that a model is given.

    `scenario` is `(D, d)`. `item` has the candidate's vector, with index 0 for an item without one. `users` has the
    user-level tables (prompted, own, others) in order. `reductions` are the fitted reductions, to be saved with the
    model. `leaks` says what the protocol shows to rows that must not know it; it is empty if there is no leak.
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
    """Build the tables that a model `needs`; raises `InputError` if the folder lacks a level."""
    reductions: dict[str, Reduction] = {}
    items_read = cache(partial(_items_read, folder, data, config))
    scenario = None
    if "scenario" in needs:
        known, raw = _scenario_vectors(folder, data, config, items_read)
        reductions["scenario"] = Reduction.fit(raw, 0)
        reduced = _disturbed(reductions["scenario"].apply(raw), known, config, "scenario")
        scenario = np.zeros((data.scenario_count, reduced.shape[1]), np.float32)  # unknown: 0, the mean
        scenario[known] = reduced
    users: dict[Source, StateTable] = {}
    if "prompted" in needs:
        states, reductions["user"] = prompted_states(folder, data, config, items_read)
        users["prompted"] = states.seen_by(np.asarray(data.user), np.asarray(data.time))
    item = None
    if needs & {*COMPOSED, "item"}:
        items = items_of(folder, data, config, items_read)
        reductions |= items.reductions
        wanted = [source for source in COMPOSED if source in needs]
        users |= composed_tables(data, items, config, wanted, reductions)
        if "item" in needs:
            item = StateTable(items.table, np.where(items.known[data.item], data.item + 1, 0).astype(np.int32))
    return Knowledge(scenario, item, users, reductions, folder.leaks if "prompted" in needs else "")


def fingerprint(folder: KnowledgeFolder, config: KnowledgeConfig) -> str:
    """A fingerprint of all stored knowledge that the config reads."""
    return fingerprint_with(folder, _kinds(config))


def _kinds(config: KnowledgeConfig) -> tuple[str, ...]:
    """The kinds of item vectors to read: those of the config, or the control that replaces them."""
    instead = config.replacement.vectors
    return config.vectors if instead is None else (instead,)


def _items_read(folder: KnowledgeFolder, data: PreparedData, config: KnowledgeConfig) -> ItemVectors:
    """The item vectors that are read: the LLM's, joined with others, or those that the control puts in their place."""
    return item_vectors(folder, data, _kinds(config), config.dimensions)


def _scenario_vectors(
    folder: KnowledgeFolder, data: PreparedData, config: KnowledgeConfig, items_read: Callable[[], ItemVectors]
) -> tuple[NDArray[np.int64], NDArray[np.float16] | NDArray[np.float32]]:
    """The scenarios that have a vector, ascending, and their vectors."""
    everyone = np.arange(data.scenario_count)
    if config.replacement.counts:
        return everyone, scenario_counts(data)
    if config.replacement.vectors is not None:
        return everyone, scenario_items(data, items_read().vectors)
    return folder.scenarios()


def prompted_states(
    folder: KnowledgeFolder,
    data: PreparedData,
    config: KnowledgeConfig,
    items_read: Callable[[], ItemVectors] | None = None,
) -> tuple[States, Reduction]:
    """The users' states from their prompts, one per snapshot, and the reduction of their vectors.

    `items_read` gives the item vectors, which some controls need, if they are at hand.
    """
    items_read = items_read or partial(_items_read, folder, data, config)
    index = folder.subjects("user")
    user, time = index["subject"].to_numpy(), index["time"].to_numpy()
    training = time <= data.split.valid_time
    control = config.replacement
    if control.counts or control.vectors is not None:
        if control.counts:
            raw = count_vectors(data, user, time)
        else:
            raw = history_vectors(data, user, time, folder.config.history, items_read().vectors)
        reduction = Reduction.fit(raw[training] if training.any() else raw, config.dimensions)
        vectors = reduction.apply(raw)
    else:
        fitted = training if training.any() else np.ones_like(training)  # the only snapshot of `all` is after all rows
        _, vectors, reduction = folder.reduced("user", config.dimensions, lambda _: fitted)
    if control.name == "shuffled":
        for moment in np.unique(time):
            there = np.flatnonzero(time == moment)
            vectors[there] = _disturbed(vectors[there], user[there], config, "user")
    else:
        vectors = _disturbed(vectors, user, config, "user")
    if folder.leaks:
        time = np.full_like(time, data.time[0] - 1)  # dated before all rows, so that every row sees the snapshot
    order = np.lexsort((time, user))
    return States(user[order], time[order], vectors[order]), reduction


def items_of(
    folder: KnowledgeFolder,
    data: PreparedData,
    config: KnowledgeConfig,
    items_read: Callable[[], ItemVectors] | None = None,
) -> ItemVectors:
    """The items' vectors as the config reduces and joins them, or those of the control that replaces them.

    `items_read` gives those that are read, if they are at hand.
    """
    if config.replacement.counts:  # this control has no item vectors
        return ItemVectors.of(np.zeros((data.items.height, 1), np.float32), np.zeros(data.items.height, bool))
    found = items_read() if items_read is not None else _items_read(folder, data, config)
    if not config.replacement.disturbs:
        return found
    codes, table = np.flatnonzero(found.known), found.table.copy()
    table[codes + 1] = _disturbed(found.vectors[codes], codes, config, "item")
    return replace(found, table=table)


def _disturbed(
    vectors: NDArray[np.float32], subjects: NDArray[Any], config: KnowledgeConfig, level: Level
) -> NDArray[np.float32]:
    return disturbed(vectors, subjects, config.replacement, config.control_seed, level)
