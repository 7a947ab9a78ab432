"""Batches by whole-array gathers, sorted by scenario, joined with the states their rows see.

This stands in `training` since it joins columns (`data`) with states (`knowledge`) into tensors (`models`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from llm4msr.data.prepared import PreparedData
from llm4msr.data.split import Part
from llm4msr.knowledge.sources import NO_KNOWLEDGE, Knowledge
from llm4msr.knowledge.states import UNKNOWN, StateTable
from llm4msr.models.batch import Batch, FieldLayout, KnowledgeWidths, UserStates
from llm4msr.training.order import Groups, shuffled

T = TypeVar("T")
_OWN_STATES = 0.6
"""Where more of a batch's rows than this have a state of their own, every row is given its own."""


class BatchSource:
    """Makes batches of one prepared data set and the knowledge that goes with it.

    Args:
        data: the prepared data.
        knowledge: the tables of states that the model needs, or none.
        device: where the tensors of a batch lie.
    """

    def __init__(
        self, data: PreparedData, knowledge: Knowledge = NO_KNOWLEDGE, device: torch.device | None = None
    ) -> None:
        self._data = data
        self._knowledge = knowledge
        self._device = device or torch.device("cpu")
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
        self._categorical = [np.asarray(data.field(f.name)) for f in categorical]
        self._multi = [np.asarray(data.field(f.name)) for f in multi]
        self._numeric = [np.asarray(data.field(f.name)) for f in data.fields_of("numeric")]
        self._scenario, self._label = np.asarray(data.scenario), np.asarray(data.label)

    def steps(self, part: Part, batch_size: int) -> int:
        """The number of batches that a part gives."""
        first, last = self._data.split.range(part)
        return -(-(last - first) // batch_size)

    def epoch(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        start: int = 0,
        *,
        window: int | None = None,
        together: int = 1,
        share: Callable[[NDArray[np.int64]], NDArray[np.int64]] = lambda rows: rows,
    ) -> Iterator[Batch]:
        """Shuffled training batches, from step `start` on, of `share` of each batch's rows; see `shuffled`.

        Up to `together` rows that see the same user states are drawn as one.
        """
        groups = Groups(self._states_seen, together) if together > 1 and self._knowledge.users else None
        chunks = islice(shuffled(self._data.split.valid, batch_size, seed, epoch, window, groups), start, None)
        return prefetched(self.make(share(rows)) for rows in chunks)

    def part(self, part: Part, batch_size: int = 8192, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """All rows of a part, in order of time from batch to batch; of `share` (i, n) every n-th batch, from i on."""
        first, last = self._data.split.range(part)
        starts = range(first + share[0] * batch_size, last, batch_size * share[1])
        chunks = (np.arange(i, min(i + batch_size, last)) for i in starts)
        return prefetched(self.make(rows) for rows in chunks)

    def make(self, rows: NDArray[np.int64]) -> Batch:
        """The batch of the given rows, sorted by scenario and otherwise in the given order."""
        scenario = self._scenario[rows]
        order = np.argsort(scenario, kind="stable")
        rows, scenario = rows[order], scenario[order]
        offsets = np.searchsorted(scenario, np.arange(self._data.scenario_count + 1))
        count = len(rows)
        categorical = np.empty((count, len(self._categorical)), dtype=np.int64)
        for place, column in enumerate(self._categorical):
            categorical[:, place] = column[rows]
        numeric = np.empty((count, len(self._numeric)), dtype=np.float32)
        for place, column in enumerate(self._numeric):
            numeric[:, place] = column[rows]
        multi = np.concatenate([np.empty((count, 0), np.int64), *(column[rows] for column in self._multi)], axis=1)
        item = None
        if self._knowledge.item is not None:
            item = self._tensor(_flagged([self._knowledge.item], [self._knowledge.item.index[rows]]))
        return Batch(
            categorical=self._tensor(categorical),
            multi=self._tensor(multi.astype(np.int64)),
            numeric=self._tensor(numeric),
            offsets=tuple(int(o) for o in offsets),
            label=self._tensor(self._label[rows].astype(np.float32)),
            rows=self._tensor(rows),
            users=self._users(rows),
            item=item,
        )

    def _users(self, rows: NDArray[np.int64]) -> UserStates | None:
        """The different combinations of states that the rows see, each once."""
        tables = list(self._knowledge.users.values())
        if not tables:
            return None
        seen = [table.index[rows] for table in tables]
        _, first, inverse = np.unique(_combined(tables, seen), return_index=True, return_inverse=True)
        if len(first) > len(rows) * _OWN_STATES:
            return UserStates(self._tensor(_flagged(tables, seen)), None)
        vectors = _flagged(tables, [index[first] for index in seen])
        return UserStates(self._tensor(vectors), self._tensor(inverse))

    @cached_property
    def _states_seen(self) -> NDArray[np.int64]:
        """A number for the user states that each training row sees."""
        tables = list(self._knowledge.users.values())
        return _combined(tables, [table.index[: self._data.split.valid] for table in tables])

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)


def _combined(tables: list[StateTable], seen: list[NDArray[np.int32]]) -> NDArray[np.int64]:
    """A number for the combination of states that each row sees."""
    found, different = np.zeros(len(seen[0]), dtype=np.int64), 1
    for table, index in zip(tables, seen, strict=True):
        if different * len(table.vectors) >= 2**63:  # the numbers that occur are at most as many as rows
            found, different = np.unique(found, return_inverse=True)[1], len(found)
        found = found * len(table.vectors) + index
        different *= len(table.vectors)
    return found


def _flagged(tables: list[StateTable], indices: list[NDArray[np.int32]]) -> NDArray[np.float32]:
    """The tables' vectors at the indices side by side, each followed by 1 where it is the unknown state."""
    out = np.empty((len(indices[0]), sum(table.vectors.shape[1] + 1 for table in tables)), dtype=np.float32)
    start = 0
    for table, index in zip(tables, indices, strict=True):
        stop = start + table.vectors.shape[1]
        np.take(table.vectors, index, axis=0, out=out[:, start:stop], mode="clip")
        out[:, stop] = index == UNKNOWN
        start = stop + 1
    return out


def prefetched(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items, made ahead by one thread; an error of the maker is raised where the items are used."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
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
