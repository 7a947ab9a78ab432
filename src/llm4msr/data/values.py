"""The raw values of a field over the rows, each read once however many rows have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.positions import gathered
from llm4msr.data.split import PARTS, Part, Split


class Occurrences:
    """Which of some values each row has: of those that are `seen` in any row, row n has the one numbered `of_rows[n]`.

    What is the same for many rows, such as a user's age, is so read and looked up once. `times` is how often each of
    the seen values occurs in a part.
    """

    def __init__(self, of_rows: NDArray[np.int32], values: int, split: Split) -> None:
        times = {part: np.bincount(of_rows[slice(*split.range(part))], minlength=values) for part in PARTS}
        occurs = np.logical_or.reduce([counts > 0 for counts in times.values()])
        self.seen = np.flatnonzero(occurs)
        self.times = {part: counts[self.seen] for part, counts in times.items()}
        self.of_rows = of_rows if occurs.all() else gathered(np.cumsum(occurs, dtype=np.int32) - 1, of_rows)


@dataclass(frozen=True)
class RowValues:
    """The raw values of a field: one for each row, in order of time, or those seen, and their `occurrences`.

    `are_ids` tells that the values are all different, texts, and in order.
    """

    values: pl.Series
    occurrences: Occurrences | None = None
    are_ids: bool = False

    def over_rows(self, found: NDArray[Any]) -> NDArray[Any]:
        """What was made of each value, `(len(values), ...)`, for each row, `(N, ...)`."""
        return found if self.occurrences is None else gathered(found, self.occurrences.of_rows)

    def training_times(self, split: Split) -> NDArray[np.int64]:
        """How often each value occurs in the training part, `(len(values),)`."""
        if self.occurrences is None:
            return (np.arange(len(self.values)) < split.valid).astype(np.int64)
        return self.occurrences.times["train"]

    def share(self, chosen: NDArray[np.bool_], part: Part, split: Split) -> float | None:
        """The share of a part's rows whose value is `chosen` `(len(values),)`; None where it has no row."""
        first, last = split.range(part)
        if first == last:
            return None
        found = chosen[first:last].sum() if self.occurrences is None else self.occurrences.times[part] @ chosen
        return round(float(found / (last - first)), 6)
