"""The columns that batches are gathered from: memory-mapped files, or copies that stay on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.states import UNKNOWN, StateTable
from llm4msr.knowledge.tables import Knowledge
from llm4msr.models.batch import Batch, UserStates

_SHARE = 0.5
"""Columns stay on a GPU if they take at most this share of its free memory."""


@dataclass(frozen=True)
class Picked:
    """The rows of a batch, and the states that they see.

    `rows` `(B,)`: row numbers. `first` `(S,)`: for each different state of the batch, the position in `rows` of a row
    that sees it. `inverse` `(B,)`: each row's index into `first`. Both are None if every row gets its own state.
    """

    rows: NDArray[np.int64]
    first: NDArray[np.int64] | None = None
    inverse: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Gathered:
    """The tensors of a batch, in the format of `Batch`; `states` are the vectors of its user states."""

    categorical: Tensor
    multi: Tensor
    numeric: Tensor
    label: Tensor
    rows: Tensor
    states: Tensor | None
    inverse: Tensor | None
    item: Tensor | None

    def batch(self, offsets: tuple[int, ...]) -> Batch:
        """The batch of these tensors, with the scenarios' slices `offsets`."""
        return Batch(
            categorical=self.categorical,
            multi=self.multi,
            numeric=self.numeric,
            offsets=offsets,
            label=self.label,
            rows=self.rows,
            users=None if self.states is None else UserStates(self.states, self.inverse),
            item=self.item,
        )


class Columns(Protocol):
    """Gathers the values of rows."""

    def gather(self, picked: Picked, *, item: bool = True) -> Gathered:
        """The tensors of a batch, on the device; without `item`, there are no vectors of the candidates."""
        ...


def columns_of(data: PreparedData, knowledge: Knowledge, device: torch.device) -> Columns:
    """Columns on the GPU if they fit beside the model; otherwise batches are gathered in host memory and sent."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # so that memory freed by an earlier run of this process counts as free
        free, _ = torch.cuda.mem_get_info(device)
        if ResidentColumns.bytes_of(data, knowledge) <= free * _SHARE:
            try:
                return ResidentColumns(data, knowledge, device)
            except torch.cuda.OutOfMemoryError:  # another process took the memory meanwhile
                torch.cuda.empty_cache()
    return MappedColumns(data, knowledge, device)


class MappedColumns:
    """Memory-mapped columns: a batch is gathered in host memory, then sent to the device."""

    def __init__(self, data: PreparedData, knowledge: Knowledge, device: torch.device) -> None:
        self._device = device
        self._users, self._item = list(knowledge.users.values()), knowledge.item
        self._categorical = _columns(data, "categorical")
        self._multi = _columns(data, "multi")
        self._numeric = _columns(data, "numeric")
        self._label = np.asarray(data.label)

    def gather(self, picked: Picked, *, item: bool = True) -> Gathered:
        """The tensors of a batch, on the device."""
        rows, count = picked.rows, len(picked.rows)
        categorical = np.empty((count, len(self._categorical)), dtype=np.int64)
        for place, column in enumerate(self._categorical):
            categorical[:, place] = column[rows]
        numeric = np.empty((count, len(self._numeric)), dtype=np.float32)
        for place, column in enumerate(self._numeric):
            numeric[:, place] = column[rows]
        multi = np.concatenate([np.empty((count, 0), np.int64), *(column[rows] for column in self._multi)], axis=1)
        table = self._item if item else None
        items = None if table is None else flagged([table], [table.index[rows]])
        states = None
        if self._users:
            whose = rows if picked.first is None else rows[picked.first]
            states = flagged(self._users, [table.index[whose] for table in self._users])
        return Gathered(
            categorical=self._sent(categorical),
            multi=self._sent(multi.astype(np.int64)),
            numeric=self._sent(numeric),
            label=self._sent(self._label[rows].astype(np.float32)),
            rows=self._sent(rows),
            states=None if states is None else self._sent(states),
            inverse=None if picked.inverse is None else self._sent(picked.inverse),
            item=None if items is None else self._sent(items),
        )

    def _sent(self, array: NDArray[Any]) -> Tensor:
        return sent(array, self._device)


class ResidentColumns:
    """Copies of all columns and states on the device: for a batch, only row numbers and state indices are sent."""

    def __init__(self, data: PreparedData, knowledge: Knowledge, device: torch.device) -> None:
        self._device = device
        categorical, multi = _columns(data, "categorical"), _columns(data, "multi")
        self._widths = [len(categorical), sum(column.shape[1] for column in multi)]
        self._ids = self._side_by_side(data.rows, [*categorical, *multi], np.int32)
        self._numeric = self._side_by_side(data.rows, _columns(data, "numeric"), np.float32)
        self._label = self._copied(np.asarray(data.label), np.float32)
        known: dict[int, Tensor] = {}  # tables may share their vectors
        self._users = [self._table(table, known) for table in knowledge.users.values()]
        self._item = None if knowledge.item is None else self._table(knowledge.item, known)

    @staticmethod
    def bytes_of(data: PreparedData, knowledge: Knowledge) -> int:
        """The memory that the copies take."""
        multi = sum(f.max_values for f in data.fields_of("multi"))
        fields = len(data.fields_of("categorical")) + len(data.fields_of("numeric")) + multi
        tables = [*knowledge.users.values(), *([] if knowledge.item is None else [knowledge.item])]
        numbers: int = data.rows * (fields + 1 + len(tables))
        vectors: dict[int, int] = {
            _address(table): len(table.vectors) * (table.vectors.shape[1] + 1) for table in tables
        }
        return 4 * (numbers + sum(vectors.values()))

    def gather(self, picked: Picked, *, item: bool = True) -> Gathered:
        """The tensors of a batch, on the device."""
        numbers = [picked.rows]
        if picked.first is not None and picked.inverse is not None:
            numbers += [picked.rows[picked.first], picked.inverse]
        found = self.at(*sent(np.concatenate(numbers), self._device).split([len(part) for part in numbers]))
        return found if item else replace(found, item=None)

    def at(self, at: Tensor, whose: Tensor | None = None, inverse: Tensor | None = None) -> Gathered:
        """The tensors of the rows `at` `(B,)`, row numbers on the device.

        `whose` `(S,)`: for each different state of the batch, the number of a row that sees it. `inverse` `(B,)`: each
        row's index into `whose`. Without them, every row gets its own state.
        """
        categorical, multi = self._ids.index_select(0, at).long().split(self._widths, 1)
        whose = at if whose is None else whose
        states = torch.cat([_seen(table, whose) for table in self._users], 1) if self._users else None
        return Gathered(
            categorical=categorical,
            multi=multi,
            numeric=self._numeric.index_select(0, at),
            label=self._label.index_select(0, at),
            rows=at,
            states=states,
            inverse=inverse,
            item=None if self._item is None else _seen(self._item, at),
        )

    def _side_by_side(self, rows: int, columns: Sequence[NDArray[Any]], dtype: type[np.generic]) -> Tensor:
        """The columns `(N,)` or `(N, k)` as one matrix, `(N, all)`; host memory holds one column at a time."""
        wide = [column.reshape(rows, -1) for column in columns]
        width = sum(column.shape[1] for column in wide)
        out = torch.empty((rows, width), dtype=getattr(torch, np.dtype(dtype).name), device=self._device)
        start = 0
        for column in wide:
            out[:, start : start + column.shape[1]] = self._copied(column, dtype)
            start += column.shape[1]
        return out

    def _table(self, table: StateTable, known: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """The state index of every row, and the states' vectors with the unknown flag."""
        if _address(table) not in known:
            count, width = table.vectors.shape
            vectors = torch.zeros((count, width + 1), device=self._device)
            vectors[:, :width].copy_(torch.from_numpy(np.require(table.vectors, requirements=["C", "W"])))
            vectors[UNKNOWN, width] = 1
            known[_address(table)] = vectors
        return self._copied(table.index, np.int32), known[_address(table)]

    def _copied(self, array: NDArray[Any], dtype: type[np.generic]) -> Tensor:
        return torch.from_numpy(array.astype(dtype)).to(self._device)


def sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device. The copy to a GPU is asynchronous."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _columns(data: PreparedData, kind: str) -> list[NDArray[Any]]:
    return [np.asarray(data.field(f.name)) for f in data.fields_of(kind)]


def _address(table: StateTable) -> int:
    return table.vectors.ctypes.data


def _seen(table: tuple[Tensor, Tensor], rows: Tensor) -> Tensor:
    index, vectors = table
    return vectors.index_select(0, index.index_select(0, rows))


def flagged(tables: list[StateTable], indices: Sequence[NDArray[np.integer[Any]]]) -> NDArray[np.float32]:
    """The tables' vectors at the indices, concatenated, each followed by a flag: 1 for the unknown state, else 0."""
    out = np.empty((len(indices[0]), sum(table.vectors.shape[1] + 1 for table in tables)), dtype=np.float32)
    start = 0
    for table, index in zip(tables, indices, strict=True):
        stop = start + table.vectors.shape[1]
        np.take(table.vectors, index, axis=0, out=out[:, start:stop], mode="clip")
        out[:, stop] = index == UNKNOWN
        start = stop + 1
    return out
