"""AUC and log loss for each scenario and overall. A value that is undefined is None, never a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

FEWEST = 10
"""With fewer rows of a class, an AUC says little: it is shown, but early stopping uses it only if there is no other."""


def tells(rows: int, positive: int) -> bool:
    """Whether each class has enough rows for an informative AUC; `positive` of the `rows` are positive."""
    return min(positive, rows - positive) >= FEWEST


@dataclass(frozen=True)
class Score:
    """Metrics of some rows. `auc` is None if there are not both classes, `log_loss` if there are no rows."""

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
        """The mean AUC over the scenarios that have one; None if none has."""
        defined = [s.auc for s in self.scenarios if s.auc is not None]
        return sum(defined) / len(defined) if defined else None

    @property
    def selection(self) -> float:
        """The score that early stopping maximises: the mean AUC over the scenarios with enough rows of each class.

        If there is no such scenario, it is the mean over all that have an AUC; if none has, minus the overall log loss,
        so below 0.
        """
        telling = [s.auc for s in self.scenarios if s.auc is not None and tells(s.rows, s.positive)]
        if telling:
            return sum(telling) / len(telling)
        if self.mean_auc is not None:
            return self.mean_auc
        return float("-inf") if self.overall.log_loss is None else -self.overall.log_loss

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """As values for JSON, with the scenarios by name."""
        by_name = dict(zip(names, (asdict(s) for s in self.scenarios), strict=True))
        return {"mean_auc": self.mean_auc, "overall": asdict(self.overall), "scenarios": by_name}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Scores:
        """Restore the scores from the output of `as_dict`."""
        return cls(Score(**raw["overall"]), tuple(Score(**s) for s in raw["scenarios"].values()))


def score_rows(label: NDArray[np.int8], logit: NDArray[np.float32]) -> Score:
    """Metrics of rows; `label` and `logit` are `(n,)`.

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
