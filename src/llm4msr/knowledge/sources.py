"""Knowledge as the models see it: tables of states and, for each impression, the state that was true before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.folders import MANIFEST, checksum, read_manifest, verify
from llm4msr.knowledge.controls import (
    Control,
    category_vectors,
    count_states,
    count_vectors,
    disturbed,
    history_vectors,
    scenario_categories,
    scenario_counts,
    trained_items,
)
from llm4msr.knowledge.reason import KIND, VERSION, Level
from llm4msr.knowledge.states import States, StateTable, compose
from llm4msr.knowledge.store import Store
from llm4msr.knowledge.vectors import Reduction

Source = Literal["scenario", "prompted", "own", "others", "item"]


class KnowledgeConfig(BaseModel):
    """How stored vectors become states.

    `dimensions` is what users' and items' vectors are reduced to. `half_life_days` weighs events in composed states.
    `control` replaces the knowledge, to see whether it is the knowledge that helps: see `llm4msr.knowledge.controls`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dimensions: int = Field(default=64, ge=1, le=4096)
    half_life_days: float = Field(default=30.0, gt=0)
    control: Control = "none"
    control_seed: int = Field(default=0, ge=0, lt=2**63)


@dataclass(frozen=True)
class Knowledge:
    """What a model is given.

    `scenario` is `(D, d)`; `item` has the candidate's vector, index 0 for an item without one; `users` has the
    user-level tables (prompted, own, others) in order. `reductions` is what was fitted, to be saved with the model.
    `leaks` says, where the protocol shows training rows their own labels, that it does.
    """

    scenario: NDArray[np.float32] | None = None
    item: StateTable | None = None
    users: dict[Source, StateTable] = field(default_factory=dict)
    reductions: dict[str, Reduction] = field(default_factory=dict)
    leaks: str = ""


NO_KNOWLEDGE = Knowledge()


@dataclass(frozen=True)
class KnowledgeFolder:
    """A folder that `reason` completed for one prepared data set."""

    path: Path
    manifest: dict[str, Any]
    index: pl.DataFrame

    @classmethod
    def open(cls, path: Path, data: PreparedData) -> KnowledgeFolder:
        """Open it; raises `InputError` where it is of other data, incomplete, altered or of another version."""
        manifest = read_manifest(path, KIND, VERSION)
        verify(path, manifest)
        if manifest["prepared"] != data.fingerprint:
            raise InputError(
                f"{path}: was made for other prepared data than {data.path}; run `llm4msr reason` for it "
                "(answers that are the same are found again)"
            )
        return cls(path, manifest, pl.read_parquet(path / "index.parquet"))

    @property
    def fingerprint(self) -> str:
        """Identifies the content: the checksum of the manifest, which holds that of the index of answers."""
        return checksum(self.path / MANIFEST)

    @property
    def protocol(self) -> str:
        """When users' prompts were made: `slices` or `train_end`."""
        return str(self.manifest["config"]["protocol"])

    def subjects(self, level: Level) -> pl.DataFrame:
        """Whom and when a level is about: subject, time and key; raises `InputError` where the level is absent."""
        index = self.index.filter(pl.col("level") == level)
        if index.is_empty():
            raise InputError(
                f"{self.path}: holds no knowledge of the level {level!r}; run `llm4msr reason` with that level"
            )
        return index

    def level(self, level: Level) -> tuple[pl.DataFrame, NDArray[np.float16]]:
        """Subjects and times of a level, and their vectors `(n, d)`."""
        index = self.subjects(level)
        with Store(self.path / "store.sqlite", read_only=True) as store:
            return index, store.vectors(index["key"].to_list())


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
        users["prompted"] = _prompted(folder, data, config, reductions)
    item = None
    if needs & {"own", "others", "item"}:
        vectors, known = _item_vectors(folder, data, config, reductions)
        if "own" in needs:
            users["own"] = _composed(data, vectors, known, config, own=True)
        if "others" in needs:
            users["others"] = _composed(data, vectors, known, config, own=False)
        if "item" in needs:
            table = np.concatenate([np.zeros((1, vectors.shape[1]), dtype=np.float32), vectors])
            item = StateTable(table, np.where(known[data.item], data.item + 1, 0).astype(np.int32))
    leaks = ""
    if "prompted" in needs and folder.protocol == "train_end":
        leaks = "protocol train_end: each training row's own label is in its user's prompt"
    return Knowledge(scenario, item, users, reductions, leaks)


def _scenario_vectors(
    folder: KnowledgeFolder, data: PreparedData, config: KnowledgeConfig
) -> NDArray[np.float16] | NDArray[np.float32]:
    if config.control == "counts":
        return scenario_counts(data)
    if config.control == "categories":
        return scenario_categories(data, category_vectors(data, config.dimensions))
    return folder.level("scenario")[1]


def _user_vectors(
    folder: KnowledgeFolder, data: PreparedData, config: KnowledgeConfig
) -> tuple[pl.DataFrame, NDArray[np.float16] | NDArray[np.float32]]:
    """The subjects and times of users' prompts, and a vector for each."""
    if config.control not in ("counts", "categories"):
        return folder.level("user")
    index = folder.subjects("user")
    user, time = index["subject"].to_numpy(), index["time"].to_numpy()
    if config.control == "counts":
        return index, count_vectors(data, user, time)
    most = int(folder.manifest["config"]["history"])
    return index, history_vectors(data, user, time, most, category_vectors(data, config.dimensions))


def _prompted(
    folder: KnowledgeFolder,
    data: PreparedData,
    config: KnowledgeConfig,
    reductions: dict[str, Reduction],
) -> StateTable:
    index, raw = _user_vectors(folder, data, config)
    reductions["user"] = Reduction.fit(raw, config.dimensions)  # every snapshot is of the training part
    user, time = index["subject"].to_numpy(), index["time"].to_numpy()
    vectors = reductions["user"].apply(raw)
    if config.control == "shuffled":
        for moment in np.unique(time):
            there = np.flatnonzero(time == moment)
            vectors[there] = _disturbed(vectors[there], user[there], config, "user")
    else:
        vectors = _disturbed(vectors, user, config, "user")
    if folder.protocol == "train_end":
        time = np.full_like(time, data.time[0] - 1)  # the paper's protocol: every row is given the one snapshot
    order = np.lexsort((time, user))
    states = States(user[order], time[order], vectors[order])
    return states.seen_by(np.asarray(data.user), np.asarray(data.time))


def _item_vectors(
    folder: KnowledgeFolder,
    data: PreparedData,
    config: KnowledgeConfig,
    reductions: dict[str, Reduction],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A vector for each item code `(items, k)`, and which of them are known. Fitted on the training part's items."""
    if config.control == "counts":  # says nothing of an item
        return np.zeros((data.items.height, 1), np.float32), np.zeros(data.items.height, bool)
    if config.control == "categories":
        codes = folder.subjects("item")["subject"].to_numpy()
        raw: NDArray[Any] = category_vectors(data, config.dimensions)[codes]
    else:
        index, raw = folder.level("item")
        codes = index["subject"].to_numpy()
    reductions["item"] = Reduction.fit(raw[trained_items(data)[codes]], config.dimensions)
    reduced = _disturbed(reductions["item"].apply(raw), codes, config, "item")
    vectors = np.zeros((data.items.height, reduced.shape[1]), dtype=np.float32)
    known = np.zeros(data.items.height, dtype=bool)
    vectors[codes], known[codes] = reduced, True
    return vectors, known


def _composed(
    data: PreparedData, vectors: NDArray[np.float32], known: NDArray[np.bool_], config: KnowledgeConfig, *, own: bool
) -> StateTable:
    """For each scenario the states of its events (own), or of those of all the others, joined to its rows."""
    events = data.positives
    scenario, item = events["scenario"].to_numpy(), events["item"].to_numpy()
    tables, base = [np.zeros((1, vectors.shape[1]), dtype=np.float32)], 1
    index = np.zeros(data.rows, dtype=np.int32)
    row_scenario = np.asarray(data.scenario)
    for d in range(data.scenario_count):
        chosen = (scenario == d) if own else (scenario != d)
        if config.control != "counts":
            chosen &= known[item]
        part = events.filter(pl.Series(chosen))
        user, time = part["user"].to_numpy(), part["time"].to_numpy()
        if config.control == "counts":
            states = count_states(user, time)
        else:
            states = compose(user, time, part["item"].to_numpy(), vectors, config.half_life_days)
        rows = np.flatnonzero(row_scenario == d)
        seen = states.seen_by(data.user[rows], data.time[rows]).index
        index[rows] = np.where(seen > 0, seen + (base - 1), 0)
        tables.append(states.vectors)
        base += len(states.vectors)
    return StateTable(np.concatenate(tables), index)


def _disturbed(
    vectors: NDArray[np.float32], subjects: NDArray[Any], config: KnowledgeConfig, level: Level
) -> NDArray[np.float32]:
    return disturbed(vectors, subjects, config.control, config.control_seed, level)
