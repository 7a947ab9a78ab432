"""The order in which an epoch visits the training rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK = 16_384
"""Rows that lie side by side on disk and are read together."""


def shuffled(
    rows: int, batch_size: int, seed: int, epoch: int, window: int | None = None
) -> Iterator[NDArray[np.int64]]:
    """Batches of row numbers that hold each of `rows` rows once; the order depends on seed and epoch alone.

    Without a `window` every order is as likely as any other. With it, blocks of consecutive rows are shuffled, and rows
    within windows of about so many rows of them: only a window has to be in memory at once, so that data larger than
    memory is read in large pieces. All batches but the last have `batch_size` rows.
    """
    random = np.random.default_rng((seed, epoch))
    if window is None:
        yield from _cut(iter([random.permutation(rows)]), batch_size)
        return
    blocks = random.permutation(-(-rows // BLOCK))
    together = max(1, window // BLOCK)
    windows = (blocks[i : i + together] for i in range(0, len(blocks), together))
    yield from _cut((random.permutation(_rows_of(some, rows)) for some in windows), batch_size)


def _rows_of(blocks: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    numbers = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    return numbers[numbers < rows]


def _cut(pieces: Iterator[NDArray[np.int64]], size: int) -> Iterator[NDArray[np.int64]]:
    """The same numbers in pieces of one size."""
    left = np.empty(0, dtype=np.int64)
    for piece in pieces:
        whole = np.concatenate([left, piece]) if len(left) else piece
        end = len(whole) // size * size
        yield from (whole[i : i + size] for i in range(0, end, size))
        left = whole[end:]
    if len(left):
        yield left
