"""AUC and log loss for each scenario and overall; undefined, never a number, where a scenario has one class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

FEWEST = 10
"""Rows of each class below which an AUC says little: it is shown, and decides nothing."""


def tells(rows: int, positive: int) -> bool:
    """Whether so many rows, of which so many are positive, are enough of each class for their AUC to say something."""
    return min(positive, rows - positive) >= FEWEST


@dataclass(frozen=True)
class Score:
    """Metrics of some rows. `auc` is None where there is one class only, `log_loss` where there is no row."""

    rows: int
    positive: int
    auc: float | None
    log_loss: float | None


@dataclass(frozen=True)
class Scores:
    """Metrics over all rows and for each scenario, in the schema's order."""

    overall: Score
    scenarios: tuple[Score, ...]

    @property
    def mean_auc(self) -> float | None:
        """The mean AUC over the scenarios where it is defined; None where it is nowhere."""
        defined = [s.auc for s in self.scenarios if s.auc is not None]
        return sum(defined) / len(defined) if defined else None

    @property
    def selection(self) -> float:
        """What early stopping maximises: the mean AUC over the scenarios that have enough rows of each class.

        Where none has, it is that over all; where none is defined, minus the log loss, so below 0.
        """
        telling = [s.auc for s in self.scenarios if s.auc is not None and tells(s.rows, s.positive)]
        if telling:
            return sum(telling) / len(telling)
        if self.mean_auc is not None:
            return self.mean_auc
        return float("-inf") if self.overall.log_loss is None else -self.overall.log_loss

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """As JSON can hold it, the scenarios by name."""
        by_name = dict(zip(names, (asdict(s) for s in self.scenarios), strict=True))
        return {"mean_auc": self.mean_auc, "overall": asdict(self.overall), "scenarios": by_name}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Scores:
        """What `as_dict` gave."""
        return cls(Score(**raw["overall"]), tuple(Score(**s) for s in raw["scenarios"].values()))


def score_rows(label: NDArray[np.int8], logit: NDArray[np.float32]) -> Score:
    """Metrics of rows, both `(n,)`.

    >>> score_rows(np.array([0, 1], dtype=np.int8), np.array([0.0, 0.0], dtype=np.float32)).auc
    0.5
    """
    rows, positive = len(label), int(label.sum())
    auc = float(roc_auc_score(label, logit)) if 0 < positive < rows else None
    if not rows:
        return Score(0, 0, None, None)
    x = logit.astype(np.float64)
    log_loss = float(np.mean(np.logaddexp(0.0, x) - label * x))
    return Score(rows, positive, auc, log_loss)


def score(label: NDArray[np.int8], logit: NDArray[np.float32], scenario: NDArray[np.int16], scenarios: int) -> Scores:
    """Metrics overall and for each of the scenarios."""
    parts = tuple(score_rows(label[scenario == d], logit[scenario == d]) for d in range(scenarios))
    return Scores(score_rows(label, logit), parts)
