"""The chronological split: earlier rows train, later rows validate, the last rows test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llm4msr.errors import InputError

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Split:
    """Rows sorted by time: `[0, valid)` are for training, `[valid, test)` for validation, `[test, rows)` for the test.

    `valid_time` and `test_time` are the first times (microseconds) of the later two parts: a row belongs to the
    training part exactly when its time is before `valid_time`, and to the test part when it is not before `test_time`.
    """

    rows: int
    valid: int
    test: int
    valid_time: int
    test_time: int

    def range(self, part: Part) -> tuple[int, int]:
        """The first row of a part, and the row after its last."""
        return {"train": (0, self.valid), "valid": (self.valid, self.test), "test": (self.test, self.rows)}[part]

    def over(self, times: NDArray[np.int64]) -> Split:
        """Split other rows, with ascending `times`, at the same two times."""
        valid, test = np.searchsorted(times, [self.valid_time, self.test_time], side="left")
        return Split(len(times), int(valid), int(test), self.valid_time, self.test_time)


def chronological_split(times: NDArray[np.int64], ratios: tuple[float, float, float] = (8, 1, 1)) -> Split:
    """Cut rows with ascending times by `ratios`. Rows with the same time all go to the same part, the later one.

    Raises `InputError` for wrong ratios, or if the training part would be empty.

    >>> chronological_split(np.array([1, 2, 3, 4, 5, 5, 6, 7, 8, 9]), (5, 3, 2)).range("train")
    (0, 4)
    """
    if not all(0 <= r < float("inf") for r in ratios) or ratios[0] <= 0:
        raise InputError(f"the split {ratios} needs a positive share for training, and none below zero or infinite")
    rows = len(times)
    shares = np.cumsum(ratios) / sum(ratios)
    cuts, cut_times = [], []
    for share in shares[:2]:
        position = min(round(rows * float(share)), rows)
        if position < rows:
            cut = int(np.searchsorted(times, times[position], side="left"))
            cut_times.append(int(times[position]))
        else:
            cut = rows
            cut_times.append(int(times[-1]) + 1 if rows else 0)
        cuts.append(cut)
    if cuts[0] == 0:
        raise InputError(
            f"the split by time leaves no training row: {rows} rows, and those at the cut all have its time; "
            "is the time column the time of the interaction?"
        )
    return Split(rows, cuts[0], cuts[1], cut_times[0], cut_times[1])
