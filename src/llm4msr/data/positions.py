"""Look up the positions of values in a series, fast enough to do it for every row."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.raw import fits_int64

_SPREAD = 8
"""The most slots that a look-up array may have per value."""
_AT_ONCE = 2**18
"""The number of values looked up at once, so that intermediate results stay in the CPU cache."""


def gathered(values: NDArray[Any], places: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """`values[places]`, block by block, since NumPy would copy all places to 64-bit integers."""
    found = np.empty((len(places), *values.shape[1:]), dtype=values.dtype)
    for start in range(0, len(places), _AT_ONCE):
        part = places[start : start + _AT_ONCE]
        values.take(part, axis=0, out=found[start : start + len(part)], mode="clip")
    return found


class Positions:
    """The position of each value in a series: its first position if it occurs more than once.

    A missing value is a value like any other. Integers that lie close together, as most ids do, are looked up in an
    array, several times as fast as by a join. All other values are joined.

    >>> Positions(pl.Series([7, 5, 7])).of(pl.Series([5, 6, 7]))
    array([ 1, -1,  0], dtype=int32)
    """

    def __init__(self, values: pl.Series) -> None:
        places = np.arange(len(values), dtype=np.int32)
        self._array: NDArray[np.int32] | None = None
        if (bounds := _close_together(values)) is not None:
            self._low, self._high = bounds
            self._array = np.full(self._high - self._low + 3, -1, dtype=np.int32)
            self._array[self._slots(values)[::-1]] = places[::-1]  # of equal slots the last assignment wins
        else:
            table = pl.DataFrame({"value": values, "place": places})
            self._table = table.unique("value", keep="first")

    def of(self, values: pl.Series) -> NDArray[np.int32]:
        """The position of each value, `(n,)`; -1 if it is not in the series, which must have the same type."""
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
        """The slot of each value: one per integer from lowest to highest, one for all others, one for nulls."""
        others = self._high - self._low + 1
        above = values.fill_null(self._low).cast(pl.Int64).to_numpy() - self._low  # may overflow, but never into a slot
        slots: NDArray[np.int64] = np.minimum(above.view(np.uint64), np.uint64(others)).view(np.int64)
        if values.null_count():
            slots[values.is_null().to_numpy()] = others + 1
        return slots


def _close_together(values: pl.Series) -> tuple[int, int] | None:
    """The lowest and the highest value if an array can be made for them, else None."""
    if not fits_int64(values.dtype) or values.null_count() == len(values):
        return None
    known = values.drop_nulls().to_numpy()
    low, high = int(known.min()), int(known.max())
    return (low, high) if high - low < _SPREAD * len(values) else None
