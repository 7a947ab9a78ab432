"""AUC and log loss for each scenario and overall. A value that is undefined is None, never a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from llm4msr.data.classes import averaged


@dataclass(frozen=True)
class Score:
    """Metrics of some rows. `auc` is None if there are not both classes, `log_loss` if there are no rows."""

    rows: int
    positive: int
    auc: float | None
    log_loss: float | None

    @property
    def constant(self) -> float | None:
        """The log loss of the best constant, the click rate of these rows: a probability is worth nothing above it."""
        if not self.rows:
            return None
        rates = [count / self.rows for count in (self.positive, self.rows - self.positive)]
        return sum(-rate * math.log(rate) for rate in rates if rate)


@dataclass(frozen=True)
class Scores:
    """Metrics over all rows and for each scenario, in the schema's order."""

    overall: Score
    scenarios: tuple[Score, ...]

    @property
    def mean_auc(self) -> float | None:
        """The mean AUC over the scenarios with enough rows of each class; if none has, over all that have an AUC."""
        chosen = [s.auc for s in self._averaged if s.auc is not None]
        return sum(chosen) / len(chosen) if chosen else None

    @property
    def _averaged(self) -> list[Score]:
        """The scenarios that the mean AUC is over."""
        chosen = averaged([(s.rows, s.positive) for s in self.scenarios])
        return [s for s, taken in zip(self.scenarios, chosen, strict=True) if taken]

    @property
    def chance(self) -> float:
        """What the mean AUC of random scores stays below: three standard errors above 1/2. Minus infinity without AUC.

        The variance of one AUC is that of the Mann-Whitney statistic, `(P + N + 1) / (12 P N)`.
        """
        sizes = [(s.positive, s.rows - s.positive) for s in self._averaged]
        if not sizes:
            return float("-inf")
        variance = sum((p + n + 1) / (12 * p * n) for p, n in sizes) / len(sizes) ** 2
        return 0.5 + 3 * float(variance**0.5)

    @property
    def selection(self) -> float:
        """The score that early stopping maximises: the mean AUC or, if none is defined, minus the overall log loss."""
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
