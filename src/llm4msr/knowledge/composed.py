"""Composed states of all users, joined to the impressions: each event makes a new state of its user."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from llm4msr.cores import usable_cores
from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.config import KnowledgeConfig, behaviour_weights
from llm4msr.knowledge.item_vectors import ItemVectors
from llm4msr.knowledge.states import Composed, Source, States, StateTable, as_of, begins_of, compose
from llm4msr.knowledge.vectors import Reduction


def composed_tables(
    data: PreparedData,
    items: ItemVectors,
    config: KnowledgeConfig,
    sources: Sequence[Composed],
    reductions: dict[str, Reduction] | None = None,
) -> dict[Source, StateTable]:
    """For each row, the state made of its user's events in its scenario (`own`) or in all `others`.

    Tables that need the same states share them, unless counts are added: of two scenarios, the `own` states of one are
    the `others` states of the other.
    """
    if config.counts or config.replacement.counts:
        return {source: _with_counts(data, items, config, source, reductions) for source in sources}
    pool = _Pool(data, items, config, sources)
    return {source: StateTable(pool.vectors, pool.seen(source)) for source in sources}


def _with_counts(
    data: PreparedData,
    items: ItemVectors,
    config: KnowledgeConfig,
    source: Composed,
    reductions: dict[str, Reduction] | None,
) -> StateTable:
    """States with a column for the number of their events (log1p, standardised) or, as a control, that column alone."""
    pool = _Pool(data, items, config, [source])
    count = np.log1p(np.concatenate([states.count for states in pool.states.values()]))[:, None].astype(np.float32)
    before = np.concatenate([states.time for states in pool.states.values()]) < data.split.valid_time
    fitted = count[before] if before.any() else count
    reduction = Reduction.fit(fitted if len(fitted) else np.zeros((1, 1), np.float32), 0)
    if reductions is not None:
        reductions[f"counts {source}"] = reduction
    column = np.concatenate([np.zeros((1, 1), np.float32), reduction.apply(count)])
    vectors = column if config.replacement.counts else np.concatenate([pool.vectors, column], 1)
    return StateTable(vectors, pool.seen(source))


class _Pool:
    """The states of each set of scenarios, concatenated in one array. Its row 0 is the unknown state."""

    def __init__(
        self, data: PreparedData, items: ItemVectors, config: KnowledgeConfig, sources: Sequence[Composed]
    ) -> None:
        self._data = data
        events = data.positives
        user, time, item = (events[name].to_numpy() for name in ("user", "time", "item"))
        weight = behaviour_weights(data, config)[events["behaviour"].to_numpy()]
        usable = weight > 0 if config.replacement.counts else (weight > 0) & items.known[item]
        scenario = events["scenario"].to_numpy()
        wanted = dict.fromkeys(some for source in sources for some in self._scenarios(source))
        chosen = {some: np.flatnonzero(usable & np.isin(scenario, list(some))) for some in wanted}
        sizes = [len(begins_of(user[e], time[e])) for e in chosen.values()]
        self._begins = dict(zip(chosen, 1 + np.cumsum([0, *sizes])[:-1], strict=True))
        self.vectors = np.empty((1 + sum(sizes), items.vectors.shape[1]), dtype=np.float32)
        self.vectors[0] = 0.0

        def composed(some: frozenset[int], size: int) -> States:
            these, begin = chosen[some], self._begins[some]
            return compose(
                user[these],
                time[these],
                item[these],
                items.vectors,
                config.half_life_days,
                half_life_events=config.half_life_events,
                weight=weight[these],
                out=self.vectors[begin : begin + size],
            )

        with ThreadPoolExecutor(max_workers=usable_cores()) as threads:
            self.states = dict(zip(chosen, threads.map(composed, chosen, sizes), strict=True))

    def _scenarios(self, source: Composed) -> list[frozenset[int]]:
        """For each scenario d, the scenarios whose events make its states: {d} for `own`, all but d for `others`."""
        everything = frozenset(range(self._data.scenario_count))
        return [frozenset({d}) if source == "own" else everything - {d} for d in sorted(everything)]

    def seen(self, source: Composed) -> NDArray[np.int32]:
        """The index in `vectors` of the state that each row sees, `(N,)`."""
        data, row_scenario = self._data, np.asarray(self._data.scenario)
        index = np.zeros(data.rows, dtype=np.int32)
        for d, some in enumerate(self._scenarios(source)):
            rows, states = np.flatnonzero(row_scenario == d), self.states[some]
            found = as_of(states.user, states.time, data.user[rows], data.time[rows])
            index[rows] = np.where(found > 0, found + (self._begins[some] - 1), 0)
        return index
