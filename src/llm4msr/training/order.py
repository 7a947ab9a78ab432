"""The order in which an epoch visits the training rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

BLOCK = 16_384
"""Rows in a block: they are consecutive on disk and are read together."""


@dataclass(frozen=True)
class Drawing:
    """How batches are drawn from the training rows.

    `batch_size` rows each, in an order that `seed` and the epoch determine. With a `window`, rows are shuffled within
    windows of about so many rows (see `shuffled`). Up to `together` rows that see the same user states stay together.
    """

    batch_size: int
    seed: int = 0
    window: int | None = None
    together: int = 1


def shuffled(rows: int, drawing: Drawing, epoch: int, groups: Groups | None = None) -> Iterator[NDArray[np.int64]]:
    """Batches of row numbers that contain each of `rows` rows once. The arguments alone determine the order.

    Without a window, all orders are equally likely. With it, blocks of consecutive rows are shuffled first, and then
    the rows within windows of about `window` rows of these blocks. Only one window has to be in memory at a time, so
    data larger than memory is read in large pieces. With `groups`, pieces of groups are shuffled instead of single
    rows. All batches but the last have `batch_size` rows; a batch may begin or end inside a piece.
    """
    batch_size, window = drawing.batch_size, drawing.window
    random = np.random.default_rng((drawing.seed, epoch))
    mixed = random.permutation if groups is None else partial(groups.mixed, random=random)
    if window is None:
        yield from _cut(iter([mixed(np.arange(rows))]), batch_size)
        return
    blocks = random.permutation(-(-rows // BLOCK))
    together = max(1, window // BLOCK)
    windows = (blocks[i : i + together] for i in range(0, len(blocks), together))
    yield from _cut((mixed(_rows_of(some, rows)) for some in windows), batch_size)


@dataclass(frozen=True)
class Groups:
    """Groups of rows that are drawn together, in pieces of up to `most` rows.

    A group is the rows with the same number in `of_rows` `(N,)`. Rows that see the same user state, such as the
    candidates of one request, then come in one batch and share the computations on the state.
    """

    of_rows: NDArray[np.int64]
    most: int

    def mixed(self, rows: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        """The rows, with the pieces in random order (all orders equally likely) and each piece in order of time.

        >>> Groups(np.array([7, 8, 7, 7]), most=2).mixed(np.arange(4), np.random.default_rng(1)).tolist()
        [0, 2, 3, 1]
        """
        rows = np.sort(rows)
        rows = rows[np.argsort(self.of_rows[rows], kind="stable")]
        group = self.of_rows[rows]
        first = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
        place = np.arange(len(rows)) - np.repeat(first, np.diff(np.append(first, len(rows))))
        starts = np.flatnonzero(place % self.most == 0)
        order = random.permutation(len(starts))
        lengths = np.diff(np.append(starts, len(rows)))[order]
        before = np.cumsum(lengths) - lengths
        found: NDArray[np.int64] = rows[np.arange(len(rows)) + np.repeat(starts[order] - before, lengths)]
        return found


def _rows_of(blocks: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    numbers = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    return numbers[numbers < rows]


def _cut(pieces: Iterator[NDArray[np.int64]], size: int) -> Iterator[NDArray[np.int64]]:
    """The same numbers in pieces of one size; the last piece may be shorter."""
    left = np.empty(0, dtype=np.int64)
    for piece in pieces:
        whole = np.concatenate([left, piece]) if len(left) else piece
        end = len(whole) // size * size
        yield from (whole[i : i + size] for i in range(0, end, size))
        left = whole[end:]
    if len(left):
        yield left
