"""Batches: rows gathered as whole arrays, sorted by scenario, and joined with the states that they see.

This module is in `training` because it joins columns (`data`) with states (`knowledge`) into tensors (`models`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from llm4msr.cores import usable_cores
from llm4msr.data.prepared import PreparedData
from llm4msr.data.split import Part
from llm4msr.knowledge.states import StateTable
from llm4msr.knowledge.tables import NO_KNOWLEDGE, Knowledge
from llm4msr.models.batch import Batch, FieldLayout, KnowledgeWidths
from llm4msr.models.registry import Enhancer
from llm4msr.training.columns import Columns, MappedColumns, Picked
from llm4msr.training.item_readings import ItemReadings
from llm4msr.training.order import Drawing, Groups, shuffled

T = TypeVar("T")
_SCORED, _SCORED_BY_GPU = 8192, 16_384
"""Rows in a batch that is only scored, by a CPU and by a GPU."""
_LOOKED_AT = 2**20
"""Rows, in random blocks, from which `counts` makes its sample batches."""
_AHEAD = 2
"""How many batches are made ahead."""
_FEW_CORES = 2
"""If the threads that score take all of so few cores, a further thread that makes batches ahead slows them down."""
_POPULATION = 20_000
"""At most so many rows stand for the population."""
_OWN_STATES = 0.6
"""If a batch has more different states than this share of its rows, every row gets its own copy of its state."""


class BatchSource:
    """Makes batches of one prepared data set and the knowledge that goes with it.

    Args:
        data: the prepared data.
        knowledge: the tables of states that the model needs, or none.
        device: the device of a batch's tensors.
        columns: where rows are gathered from; by default the memory-mapped files (see `columns_of`).
    """

    def __init__(
        self,
        data: PreparedData,
        knowledge: Knowledge = NO_KNOWLEDGE,
        device: torch.device | None = None,
        columns: Columns | None = None,
    ) -> None:
        self._data = data
        self._knowledge = knowledge
        self.device = device or torch.device("cpu")
        self.columns = columns or MappedColumns(data, knowledge, self.device)
        categorical, multi = data.fields_of("categorical"), data.fields_of("multi")
        self.layout = FieldLayout(
            categorical=tuple(data.vocabulary_size(f.name) for f in categorical),
            multi=tuple((data.vocabulary_size(f.name), f.max_values) for f in multi),
            numeric=len(data.fields_of("numeric")),
        )
        self.widths = KnowledgeWidths(
            users=tuple(t.vectors.shape[1] + 1 for t in knowledge.users.values()),
            item=0 if knowledge.item is None else knowledge.item.vectors.shape[1] + 1,
            scenario=knowledge.scenario,
        )
        self._scenario = np.asarray(data.scenario)

    def steps(self, part: Part, batch_size: int) -> int:
        """The number of batches in a part."""
        first, last = self._data.split.range(part)
        return -(-(last - first) // batch_size)

    def epoch(
        self,
        drawing: Drawing,
        epoch: int,
        start: int = 0,
        *,
        share: Callable[[NDArray[np.int64]], NDArray[np.int64]] = lambda rows: rows,
    ) -> Iterator[Batch]:
        """An epoch's training batches from step `start` on; `share` selects the rows that are used of each."""
        return prefetched(self.make(share(rows)) for rows in self.chunks(drawing, epoch, start))

    def chunks(self, drawing: Drawing, epoch: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
        """The row numbers of each batch of an epoch."""
        grouped = drawing.together > 1 and self._knowledge.users
        groups = Groups(self._states_seen, drawing.together) if grouped else None
        return islice(shuffled(self._data.split.valid, drawing, epoch, groups), start, None)

    def part(
        self,
        part: Part,
        batch_size: int | None = None,
        share: tuple[int, int] = (0, 1),
        enhancer: Enhancer | None = None,
    ) -> Iterator[Batch]:
        """All rows of a part; the batches are in order of time. With `share` (i, n), every n-th batch from batch i on.

        The default of `batch_size` depends on the device. On a CPU, with an `enhancer` that reads items, each item is
        read once, and batches have `item_read` in place of `item`. The enhancer must be in evaluation mode.
        """
        batch_size = batch_size or (_SCORED_BY_GPU if self.device.type == "cuda" else _SCORED)
        first, last = self._data.split.range(part)
        starts = range(first + share[0] * batch_size, last, batch_size * share[1])
        chunks = [range(i, min(i + batch_size, last)) for i in starts]
        on_cpu, table, readings = self.device.type == "cpu", self._knowledge.item, None
        if on_cpu and enhancer is not None and enhancer.reads_items and table is not None:
            readings = ItemReadings(table, chunks, enhancer.read_items)
        batches = (self.make(np.arange(rows.start, rows.stop), readings) for rows in chunks)
        core_to_spare = usable_cores() > min(torch.get_num_threads(), _FEW_CORES)
        return prefetched(batches) if core_to_spare or not on_cpu else batches

    def make(self, rows: NDArray[np.int64], readings: ItemReadings | None = None) -> Batch:
        """The batch of the given rows, sorted by scenario and otherwise in the given order."""
        rows, offsets = self.in_slices(rows)
        batch = self.columns.gather(self._picked(rows), item=readings is None).batch(tuple(offsets.tolist()))
        return batch if readings is None else replace(batch, item_read=readings.of(rows))

    def in_slices(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows sorted by scenario, otherwise in the given order, and the offsets of the slices, `(D + 1,)`."""
        scenario = self._scenario[rows]
        order = np.argsort(scenario, kind="stable")
        return rows[order], np.searchsorted(scenario[order], np.arange(self._data.scenario_count + 1))

    def population(self) -> Batch:
        """Training rows, evenly spaced, that stand for the whole population, as where its mean is asked for."""
        last = self._data.split.valid - 1
        return self.make(np.unique(np.linspace(0, last, _POPULATION).astype(np.int64)))

    def counts(self, drawing: Drawing, most: int = 64) -> NDArray[np.int64]:
        """The number of rows of each scenario in a sample of up to `most` training batches, `(n, D)`."""
        chunks = self.chunks(replace(drawing, window=min(drawing.window or _LOOKED_AT, _LOOKED_AT)), 0)
        count = self._data.scenario_count
        return np.stack([np.bincount(self._scenario[rows], minlength=count) for rows in islice(chunks, most)])

    def _picked(self, rows: NDArray[np.int64]) -> Picked:
        """The rows, and the different combinations of states that they see, unless most rows have their own."""
        tables = list(self._knowledge.users.values())
        if not tables:
            return Picked(rows)
        first, inverse = _different(_combined(tables, [table.index[rows] for table in tables]))
        return Picked(rows) if len(first) > len(rows) * _OWN_STATES else Picked(rows, first, inverse)

    @cached_property
    def _states_seen(self) -> NDArray[np.int64]:
        """For each training row, a number that identifies the user states that it sees."""
        tables = list(self._knowledge.users.values())
        return _combined(tables, [table.index[: self._data.split.valid] for table in tables])


def _combined(tables: list[StateTable], seen: list[NDArray[np.int32]]) -> NDArray[np.int64]:
    """For each row, a number that identifies the combination of states that it sees."""
    found, different = np.zeros(len(seen[0]), dtype=np.int64), 1
    for table, index in zip(tables, seen, strict=True):
        if different * len(table.vectors) >= 2**63:  # renumber: there are at most as many as rows
            found, different = np.unique(found, return_inverse=True)[1], len(found)
        found = found * len(table.vectors) + index
        different *= len(table.vectors)
    return found


def _different(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each different value its first position, and each value's index into these.

    In order of time, equal values mostly follow one another, so only the first of each run is sorted.
    """
    begins = np.concatenate([np.ones(min(1, len(values)), dtype=np.bool_), values[1:] != values[:-1]])
    heads = np.flatnonzero(begins)
    _, first, inverse = np.unique(values[heads], return_index=True, return_inverse=True)
    return heads[first], inverse[np.cumsum(begins) - 1]


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """The same items, made ahead by one thread. An error while making them is raised in the consumer."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=_AHEAD)
    stopped = threading.Event()

    def offer(entry: tuple[str, Any]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer(("item", item)):
                    return
            offer(("end", None))
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            offer(("error", error))

    thread = threading.Thread(target=work, daemon=True, name="llm4msr-batches")
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()
        thread.join()
