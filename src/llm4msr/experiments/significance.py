"""Is a difference more than chance? Over seeds by a paired t-test, over the test users by an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llm4msr.data.classes import averaged, tells

Array = NDArray[np.float64]
LEVEL = 0.05
"""A difference with a smaller p counts as more than chance."""


@dataclass(frozen=True)
class Difference:
    """A mean AUC difference, its interval over the test users, and the p-value over seeds (see `paired_p_value`).

    `telling` says whether any scenario has enough rows of each class; with fewer, the interval is too narrow.
    """

    mean: float
    low: float
    high: float
    p_value: float | None
    telling: bool = True

    @property
    def significant(self) -> bool:
        """Whether the interval over the users leaves out 0 and p is below 0.05.

        Never without a p: the interval knows nothing of the chance in a training, and another seed alone often moves
        an AUC by more than it.
        """
        beyond = self.low > 0 or self.high < 0
        return self.telling and beyond and self.p_value is not None and self.p_value < LEVEL


def telling(label: NDArray[np.int8], scenario: NDArray[np.int16]) -> bool:
    """Whether any scenario has enough rows of each class: then the mean AUC is that of such scenarios alone."""
    return any(tells(rows, positive) for rows, positive in _sizes(label, scenario))


def _sizes(label: NDArray[np.int8], scenario: NDArray[np.int16]) -> list[tuple[int, int]]:
    """The rows and positives of each scenario that has rows, ascending."""
    parts = [label[scenario == d] for d in np.unique(scenario)]
    return [(len(part), int(part.sum())) for part in parts]


def components(label: NDArray[np.int8], score: NDArray[np.float32]) -> tuple[Array, Array]:
    """DeLong's structural components: for each positive the share of negatives below it, for each negative the share
    of positives above it, ties counting half (DeLong et al., 1988; computed from ranks as in Sun and Xu, 2014).

    The mean of either component is the AUC. Raises `ValueError` unless there are positives and negatives.
    """
    positive, negative = score[label == 1], score[label == 0]
    if not len(positive) or not len(negative):
        raise ValueError("the AUC of one class is undefined")
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    inner = stats.rankdata(positive), stats.rankdata(negative)
    above = (ranks[: len(positive)] - inner[0]) / len(negative)
    below = 1 - (ranks[len(positive) :] - inner[1]) / len(positive)
    return above, below


def auc_difference(
    label: NDArray[np.int8],
    scenario: NDArray[np.int16],
    user: NDArray[np.int32],
    ours: Sequence[NDArray[np.float32]],
    theirs: Sequence[NDArray[np.float32]],
) -> Difference | None:
    """The difference of two models' mean AUC over the scenarios. Each model gives its scores `(n,)` for the same seeds.

    The interval (95 %) is for other users: a user's rows are not independent, so DeLong's components, averaged over the
    seeds, are added up for each user, over all scenarios (Obuchowski, 1997). It is infinite for one user. As in the
    mean AUC, scenarios with few rows of a class are left out, unless all are so small. The result is None if no
    scenario has an AUC, or if there is no seed.
    """
    by_seed, influence, defined = np.zeros(len(ours)), np.zeros(len(label)), 0
    chosen = np.unique(scenario)[np.flatnonzero(averaged(_sizes(label, scenario)) if len(ours) else [])]
    for d in chosen:
        rows = np.flatnonzero(scenario == d)
        defined += 1
        parts = [[components(label[rows], score[rows]) for score in model] for model in (ours, theirs)]
        for side, of_class in enumerate((1, 0)):
            means = [np.mean([seed[side] for seed in model], axis=0) for model in parts]
            difference, members = means[0] - means[1], rows[label[rows] == of_class]
            influence[members] = (difference - difference.mean()) / len(members)
        by_seed += [a[0].mean() - b[0].mean() for a, b in zip(*parts, strict=True)]
    if not defined:
        return None
    mean = float(np.mean(by_seed)) / defined
    counted = np.isin(scenario, chosen)
    _, whose = np.unique(user[counted], return_inverse=True)
    reach = _reach(np.bincount(whose, influence[counted]) / defined)
    p_value = paired_p_value(by_seed / defined)
    return Difference(mean, mean - reach, mean + reach, p_value, telling(label, scenario))


def _reach(of_users: Array) -> float:
    """Half of the 95 % interval of a sum of independent contributions, one for each user, whose mean is 0."""
    users = len(of_users)
    if users < 2:
        return math.inf
    deviation = math.sqrt(float(np.square(of_users).sum()) * users / (users - 1))
    return float(stats.t.ppf(0.975, users - 1)) * deviation


def paired_p_value(differences: Array) -> float | None:
    """The p of the two-sided paired t-test over seeds; None with fewer than two seeds or equal differences."""
    if len(differences) < 2 or bool(np.ptp(differences) == 0):
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)
