"""Which items the users chose in a scenario, and when: what a sampled negative must not be."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray


def among(values: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of `values` are in the sorted array `known`."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.asarray(known[place] == values)


class Choices:
    """The users' choices in one scenario.

    Args:
        frame: the columns `user`, `item` (integer codes) and `time`; at least one row.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        user, item, time = (frame[name].to_numpy().astype(np.int64) for name in ("user", "item", "time"))
        self._items = int(item.max()) + 1
        self._times = np.unique(time)
        keys = user * self._items + item
        order = np.lexsort((time, keys))
        self._pairs, first, pair = np.unique(keys[order], return_index=True, return_inverse=True)
        self._earliest = time[order][first]
        self._moments = np.unique(self._moment(pair, time[order]))

    def _moment(self, pair: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.int64]:
        return pair * len(self._times) + np.searchsorted(self._times, time)

    def _find(self, user: NDArray[np.int64], item: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The place of each pair of a user and an item that occur here, and whether the pair occurs."""
        keys = user * self._items + item
        place = np.minimum(np.searchsorted(self._pairs, keys), len(self._pairs) - 1)
        return place, np.asarray((item < self._items) & (self._pairs[place] == keys))

    def before(self, user: NDArray[np.int64], item: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each user chose the item earlier than the time, `(n,)`."""
        place, found = self._find(user, item)
        return found & (self._earliest[place] < time)

    def until(self, user: NDArray[np.int64], item: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each user chose the item at the time or earlier, `(n,)`."""
        place, found = self._find(user, item)
        return found & (self._earliest[place] <= time)

    def at(self, user: NDArray[np.int64], item: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each user chose the item at the very time, one of a choice here, `(n,)`."""
        place, found = self._find(user, item)
        return found & among(self._moment(place, time), self._moments)
