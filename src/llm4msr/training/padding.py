"""Batches padded to a few shapes, so that a GPU can replay a step on them.

A slice has room for the mean number of its scenario's rows in some sample batches, plus five standard deviations. A
scenario without rows must stay without a slice: padding would give that scenario's own parameters an update that a
plain step does not make. So there is one shape for each set of scenarios that often occur together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MOST = 16
"""Shapes at most. Each one costs a recording, and the rarer ones would be replayed too seldom to make up for it."""


class Shape:
    """Slices of fixed lengths. `room` `(D,)` are their lengths, `offsets` where they begin and end."""

    def __init__(self, room: NDArray[np.int64]) -> None:
        self.room = room
        self.offsets: list[int] = [0, *np.cumsum(room).tolist()]
        self._scenario = np.repeat(np.arange(len(room)), room)
        self._place = np.arange(self.offsets[-1]) - np.asarray(self.offsets)[self._scenario]

    def __len__(self) -> int:
        """The number of rows, padding included."""
        return self.offsets[-1]

    def real(self, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows are no padding, `(len,)`, if the scenarios have `counts` `(D,)` rows."""
        return np.asarray(self._place < counts[self._scenario])

    def padded(self, rows: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row numbers in slices, `(B,)` and `(D + 1,)`, padded to `(len,)` with the first row of each slice."""
        place = np.where(self.real(np.diff(offsets)), self._place, 0)
        return rows[offsets[self._scenario] + place]


@dataclass(frozen=True)
class Numbers:
    """A padded batch.

    `sent`: its row numbers `(len(shape),)`, then the number of real rows of each scenario `(D,)`. `rows`: the sum of
    the latter.
    """

    shape: Shape
    sent: Tensor
    rows: int

    @classmethod
    def of(cls, shape: Shape, rows: NDArray[np.int64], offsets: NDArray[np.int64], *, pinned: bool) -> Numbers:
        """Row numbers in slices, `(B,)` and `(D + 1,)`; `pinned`: in memory that a GPU reads while the CPU goes on."""
        sent = torch.from_numpy(np.concatenate([shape.padded(rows, offsets), np.diff(offsets)]))
        return cls(shape, sent.pin_memory() if pinned else sent, len(rows))


class Shapes:
    """The shapes for batches like the sample batches whose scenarios have `counts` `(n, D)` rows."""

    def __init__(self, counts: NDArray[np.int64]) -> None:
        room = room_of(counts)
        sets, often = np.unique(counts > 0, axis=0, return_counts=True)
        frequent = sets[np.argsort(-often, kind="stable")[:_MOST]]
        self._shapes = {has_rows.tobytes(): Shape(np.where(has_rows, room, 0)) for has_rows in frequent}

    def __len__(self) -> int:
        return len(self._shapes)

    def of(self, counts: NDArray[np.int64]) -> Shape | None:
        """The shape that batches with `counts` `(D,)` rows are padded to, or None if they are not.

        >>> shapes = Shapes(np.array([[30, 10, 0], [31, 9, 1]]))
        >>> [shapes.of(np.array(counts)) is None for counts in ([30, 10, 0], [38, 1, 1], [40, 0, 0], [400, 1, 0])]
        [False, False, True, True]
        """
        shape = self._shapes.get((counts > 0).tobytes())
        return None if shape is None or (counts > shape.room).any() else shape


def room_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of rows in each scenario's slice, `(D,)`, from the `counts` `(n, D)` of some sample batches.

    >>> room_of(np.array([[3070, 1026, 0], [3040, 1056, 0]])).tolist()
    [3136, 1120, 0]
    """
    most = counts.mean(0) + 5 * counts.std(0) + 1
    return np.where(counts.any(0), -(-most // 8) * 8, 0).astype(np.int64)
