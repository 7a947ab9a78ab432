"""Controls: vectors that replace those of the LLM, to see whether its knowledge is the reason for a gain.

- `random`: a random vector for each subject.
- `shuffled`: the true vectors, each given to another subject.
- `counts`: how many positives a user had before, per scenario and behaviour; nothing about the items.
- `text`, `categories`: item vectors by TF-IDF and SVD, of the text that the LLM reads, or of the item's category alone.
  A user's vector is the mean over the items of the user's history, one mean per scenario.
- the name of a reading (`llm4msr.knowledge.readings`), such as one by a text-embedding model: its item vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge import LEVELS, Level
from llm4msr.knowledge.history import recent_positives

NO_CONTROL = "none"
CONTROLS = ("random", "shuffled", "counts", "text", "categories")
"""The controls that every data set has."""


@dataclass(frozen=True)
class Control:
    """What is in the place of the LLM's vectors, by its name; with `NO_CONTROL` nothing is, and they are read."""

    name: str = NO_CONTROL

    @property
    def replaces(self) -> bool:
        """Whether anything is replaced."""
        return self.name != NO_CONTROL

    @property
    def disturbs(self) -> bool:
        """Whether something else takes the place of each vector; see `disturbed`."""
        return self.name in ("random", "shuffled")

    @property
    def counts(self) -> bool:
        """Whether numbers of positives take the place of all vectors."""
        return self.name == "counts"

    @property
    def vectors(self) -> str | None:
        """The kind of item vectors that take the place of the LLM's: of their text or category, or a reading's name."""
        return self.name if self.replaces and not self.disturbs and not self.counts else None

    def label(self, enhancer: str) -> str:
        """The name of an enhancer with this control in tables, figures and errors."""
        return f"{enhancer}, {self.name} control" if self.replaces else enhancer


def disturbed(
    vectors: NDArray[np.float32], subjects: NDArray[Any], control: Control, seed: int, level: Level
) -> NDArray[np.float32]:
    """The vectors, replaced for a control that disturbs them, unchanged for all others."""
    if not control.disturbs:
        return vectors
    random = np.random.default_rng((seed, LEVELS.index(level)))
    if control.name == "random":
        drawn = random.standard_normal((int(subjects.max()) + 1, vectors.shape[1]), dtype=np.float32)
        return np.asarray(drawn[subjects])
    order, given = random.permutation(len(vectors)), np.empty_like(vectors)
    given[order] = vectors[np.roll(order, 1)]  # along a random circle: only a single vector keeps its place
    return given


def history_vectors(
    data: PreparedData, user: NDArray[np.int32], time: NDArray[np.int64], most: int, items: NDArray[np.float32]
) -> NDArray[np.float32]:
    """For each (user, time), the mean item vector of the user's history in each scenario, `(n, D k)`.

    The history is the `most` latest positives before the time; without any, the mean is 0.
    """
    width = items.shape[1]
    out = np.zeros((len(user), data.scenario_count, width), dtype=np.float32)
    for moment in np.unique(time):
        place = np.full(data.users.height, -1)
        there = np.flatnonzero(time == moment)
        place[user[there]] = there
        histories = recent_positives(data, int(moment), most).filter(pl.col("user").is_in(user[there].tolist()))
        lengths = histories["items"].list.len().to_numpy()
        row = np.repeat(np.arange(histories.height), lengths)
        sums = np.zeros((histories.height, width), dtype=np.float64)
        np.add.at(sums, row, items[histories["items"].explode().to_numpy()])
        out[place[histories["user"].to_numpy()], histories["scenario"].to_numpy()] = sums / lengths[:, None]
    return out.reshape(len(user), -1)


def count_vectors(data: PreparedData, user: NDArray[np.int32], time: NDArray[np.int64]) -> NDArray[np.float32]:
    """For each (user, time), log(1 + the user's positives before it) per scenario and behaviour, `(n, D * kinds)`."""
    kinds = len(data.schema.behaviours)
    out = np.zeros((len(user), data.scenario_count * kinds), dtype=np.float32)
    events = data.positives
    for moment in np.unique(time):
        place = np.full(data.users.height, -1)
        there = np.flatnonzero(time == moment)
        place[user[there]] = there
        counted = events.filter(pl.col("time") < moment).group_by("user", "scenario", "behaviour").len()
        counted = counted.filter(pl.Series(place[counted["user"].to_numpy()] >= 0))
        column = counted["scenario"].to_numpy().astype(np.int64) * kinds + counted["behaviour"].to_numpy()
        out[place[counted["user"].to_numpy()], column] = np.log1p(counted["len"].to_numpy())
    return out


def scenario_counts(data: PreparedData) -> NDArray[np.float32]:
    """log(1 + rows) and the click rate of each scenario in the training part, `(D, 2)`."""
    scenario, label = data.scenario[: data.split.valid], data.label[: data.split.valid]
    rows = np.bincount(scenario, minlength=data.scenario_count)
    clicks = np.bincount(scenario, weights=label, minlength=data.scenario_count)
    return np.stack([np.log1p(rows), clicks / np.maximum(rows, 1)], 1).astype(np.float32)


def scenario_items(data: PreparedData, items: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean vector of the items shown in each scenario in the training part, `(D, k)`."""
    scenario, item = data.scenario[: data.split.valid], data.item[: data.split.valid]
    return np.stack(
        [
            items[item[scenario == d]].mean(0) if (scenario == d).any() else np.zeros(items.shape[1], np.float32)
            for d in range(data.scenario_count)
        ]
    ).astype(np.float32)
