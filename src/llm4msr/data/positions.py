"""Looking up where values stand among others, as often as there are rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.raw import fits_int64

_SPREAD = 8
"""Places that an array may have for each of the values that it is made of."""
_AT_ONCE = 2**18
"""Places looked up at once: what is made of them on the way stays in the cache."""


def gathered(values: NDArray[Any], places: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """`values[places]`, without a copy of all places as the 64-bit numbers that NumPy looks up by."""
    found = np.empty((len(places), *values.shape[1:]), dtype=values.dtype)
    for start in range(0, len(places), _AT_ONCE):
        part = places[start : start + _AT_ONCE]
        values.take(part, axis=0, out=found[start : start + len(part)], mode="clip")
    return found


class Positions:
    """Where each of some values stands among them: its first place, where it stands there more than once.

    A missing value is a value like any other. Whole numbers that lie close together, as ids mostly do, are looked up
    in an array, which is several times as fast as a join; all else is joined.

    >>> Positions(pl.Series([7, 5, 7])).of(pl.Series([5, 6, 7]))
    array([ 1, -1,  0], dtype=int32)
    """

    def __init__(self, values: pl.Series) -> None:
        places = np.arange(len(values), dtype=np.int32)
        self._array: NDArray[np.int32] | None = None
        if (bounds := _close_together(values)) is not None:
            self._low, self._high = bounds
            self._array = np.full(self._high - self._low + 3, -1, dtype=np.int32)
            self._array[self._slots(values)[::-1]] = places[::-1]  # of equal indices the last assignment holds
        else:
            table = pl.DataFrame({"value": values, "place": places})
            self._table = table.unique("value", keep="first")

    def of(self, values: pl.Series) -> NDArray[np.int32]:
        """The place of each value `(n,)`; -1 for one that is not among them. The type is that of the first ones."""
        if self._array is None:
            joined = values.to_frame("value").join(
                self._table, on="value", how="left", nulls_equal=True, maintain_order="left"
            )
            return joined["place"].fill_null(-1).to_numpy()
        found = np.empty(len(values), dtype=np.int32)
        for start in range(0, len(values), _AT_ONCE):
            part = values.slice(start, _AT_ONCE)
            self._array.take(self._slots(part), out=found[start : start + len(part)], mode="clip")
        return found

    def _slots(self, values: pl.Series) -> NDArray[np.int64]:
        """Places in the array: from the lowest to the highest, then one for all others and one for what is missing."""
        others = self._high - self._low + 1
        above = values.fill_null(self._low).cast(pl.Int64).to_numpy() - self._low  # wraps around, and never to a place
        slots: NDArray[np.int64] = np.minimum(above.view(np.uint64), np.uint64(others)).view(np.int64)
        if values.null_count():
            slots[values.is_null().to_numpy()] = others + 1
        return slots


def _close_together(values: pl.Series) -> tuple[int, int] | None:
    """The lowest and the highest of whole numbers that an array can be made for."""
    if not fits_int64(values.dtype) or values.null_count() == len(values):
        return None
    known = values.drop_nulls().to_numpy()
    low, high = int(known.min()), int(known.max())
    return (low, high) if high - low < _SPREAD * len(values) else None
