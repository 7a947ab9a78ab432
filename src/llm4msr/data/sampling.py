"""Sampling that a seed reproduces; the sample of a row does not depend on the other rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every input bit changes half of the output bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_keys(*keys: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A 64-bit hash of each row of integer keys, `(n,)`; it depends only on the row and the seed."""
    state = _mix(np.full(len(keys[0]), seed, dtype=np.uint64) + _GOLDEN)
    for key in keys:
        state = _mix(state ^ (key.astype(np.int64).view(np.uint64) + _GOLDEN))
    return state


def uniform(keys: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each key, `(n,)`."""
    return (keys >> np.uint64(11)).astype(np.float64) / 2.0**53


def stratified_positions(
    keys: NDArray[np.uint64], sizes: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw `count` different positions below `sizes[i]` for each row i, or all of them if there are fewer.

    The range is cut into `count` parts and one position is drawn from each, so that none is drawn twice. The lengths of
    the parts differ by at most one, so the chances of positions differ slightly, less for longer parts. Returns the row
    index and the position, both `(m,)`, rows ascending.

    >>> stratified_positions(hash_keys(np.array([7]), seed=0), np.array([2]), 5)
    (array([0, 0]), array([0, 1]))
    """
    drawn = np.minimum(sizes, count)
    row = np.repeat(np.arange(len(sizes)), drawn)
    part = np.arange(len(row)) - np.repeat(np.cumsum(drawn) - drawn, drawn)
    noise = _mix(keys[row] + (part.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    low, high = sizes[row] * part // drawn[row], sizes[row] * (part + 1) // drawn[row]
    return row, low + np.minimum((uniform(noise) * (high - low)).astype(np.int64), high - low - 1)
