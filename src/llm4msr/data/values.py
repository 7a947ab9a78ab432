"""The raw values of a field over the rows; a value that many rows share is read only once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.positions import gathered
from llm4msr.data.split import PARTS, Part, Split


class Occurrences:
    """Map rows to numbered values: row n has the value number `seen[of_rows[n]]`. Values that no row has are dropped.

    A value that many rows share, such as the age of their user, is thus read and looked up once. `times` counts, for
    each part, how often each of the `seen` values occurs.
    """

    def __init__(self, of_rows: NDArray[np.int32], values: int, split: Split) -> None:
        times = {part: np.bincount(of_rows[slice(*split.range(part))], minlength=values) for part in PARTS}
        occurs = np.logical_or.reduce([counts > 0 for counts in times.values()])
        self.seen = np.flatnonzero(occurs)
        self.times = {part: counts[self.seen] for part, counts in times.items()}
        self.of_rows = of_rows if occurs.all() else gathered(np.cumsum(occurs, dtype=np.int32) - 1, of_rows)


@dataclass(frozen=True)
class RowValues:
    """The raw values of a field: one per row, in order of time; or, with `occurrences`, one per value that is seen.

    `are_ids` says that the values are texts, all different and sorted.
    """

    values: pl.Series
    occurrences: Occurrences | None = None
    are_ids: bool = False

    def over_rows(self, found: NDArray[Any]) -> NDArray[Any]:
        """Expand results per value, `(len(values), ...)`, to results per row, `(N, ...)`."""
        return found if self.occurrences is None else gathered(found, self.occurrences.of_rows)

    def training_times(self, split: Split) -> NDArray[np.int64]:
        """How often each value occurs in the training part, `(len(values),)`."""
        if self.occurrences is None:
            return (np.arange(len(self.values)) < split.valid).astype(np.int64)
        return self.occurrences.times["train"]

    def share(self, chosen: NDArray[np.bool_], part: Part, split: Split) -> float | None:
        """The share of a part's rows whose value is `chosen`, a mask `(len(values),)`; None if it has no row."""
        first, last = split.range(part)
        if first == last:
            return None
        found = chosen[first:last].sum() if self.occurrences is None else self.occurrences.times[part] @ chosen
        return float(found / (last - first))
