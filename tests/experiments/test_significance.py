from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from llm4msr.experiments.significance import auc_difference, components, paired_p_value

LABEL = np.array([0, 1, 1, 0, 1, 0, 0, 1], dtype=np.int8)
OURS = np.array([0.1, 0.9, 0.4, 0.4, 0.8, 0.2, 0.6, 0.5], dtype=np.float32)
THEIRS = np.array([0.3, 0.6, 0.2, 0.4, 0.9, 0.1, 0.5, 0.5], dtype=np.float32)


def by_definition(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The structural components by two loops: 1 for a pair in order, 1/2 for a tie."""
    positive, negative = score[LABEL == 1], score[LABEL == 0]
    pairs = np.array([[1.0 if p > n else 0.5 if p == n else 0.0 for n in negative] for p in positive])
    return pairs.mean(1), pairs.mean(0)


@pytest.mark.parametrize("score", [OURS, THEIRS])
def test_components_are_those_of_the_definition_and_their_mean_is_the_auc(score: np.ndarray) -> None:
    for found, expected in zip(components(LABEL, score), by_definition(score), strict=True):
        np.testing.assert_allclose(found, expected)
        assert found.mean() == pytest.approx(roc_auc_score(LABEL, score))


def test_the_interval_is_delongs_and_the_mean_that_of_the_seeds() -> None:
    found = auc_difference(LABEL, np.zeros(8, np.int16), [OURS, OURS], [THEIRS, OURS])
    (a, b), (c, d) = by_definition(OURS), by_definition(THEIRS)
    variance = np.var((a - c) / 2, ddof=1) / 4 + np.var((b - d) / 2, ddof=1) / 4
    expected = (roc_auc_score(LABEL, OURS) - roc_auc_score(LABEL, THEIRS)) / 2
    assert found is not None
    assert found.mean == pytest.approx(expected)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * variance**0.5)


def test_a_scenario_of_one_class_is_left_out() -> None:
    label, score = np.append(LABEL, [1, 1]).astype(np.int8), np.append(OURS, [0.1, 0.2]).astype(np.float32)
    other = np.append(THEIRS, [0.9, 0.9]).astype(np.float32)
    scenario = np.array([0] * 8 + [1] * 2, dtype=np.int16)
    alone = auc_difference(LABEL, scenario[:8], [OURS], [THEIRS])
    assert auc_difference(label, scenario, [score], [other]) == alone
    assert auc_difference(label[8:], scenario[8:], [score[8:]], [other[8:]]) is None


def test_the_p_value_is_that_of_scipys_paired_test() -> None:
    a, b = np.array([0.71, 0.73, 0.70]), np.array([0.70, 0.70, 0.69])
    assert paired_p_value(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_p_value(np.array([0.1])) is None
    assert paired_p_value(np.array([0.0, 0.0])) is None


def test_without_a_seed_there_is_no_difference() -> None:
    assert auc_difference(LABEL, np.zeros(8, np.int16), [], []) is None


def test_a_scenario_of_few_rows_makes_nothing_significant() -> None:
    label = np.array([1, 0, 0, 0, 0, 0, 0], dtype=np.int8)
    ours, theirs = (np.array([top, *range(6)], dtype=np.float32) for top in (9, -9))
    found = auc_difference(label, np.zeros(7, np.int16), [ours], [theirs])
    assert found is not None
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)  # no variance where there is one positive
    assert not found.significant
    label_of_two, rows = np.concatenate([label, LABEL.repeat(10)]), np.array([0] * 7 + [1] * 80, np.int16)
    both = [np.concatenate([small, large.repeat(10)]) for small, large in ((ours, OURS), (theirs, THEIRS))]
    beside = auc_difference(label_of_two, rows, [both[0]], [both[1]])
    assert beside == auc_difference(LABEL.repeat(10), rows[7:], [OURS.repeat(10)], [THEIRS.repeat(10)])
    many = np.repeat(label, 30), np.repeat(ours, 30), np.repeat(theirs, 30)
    again = many[1] + np.where(np.arange(210) == 45, 20, 0).astype(np.float32)  # another seed, a little worse
    enough = auc_difference(many[0], np.zeros(210, np.int16), [many[1], again], [many[2], many[2]])
    assert enough is not None
    assert enough.significant
    one_seed = auc_difference(many[0], np.zeros(210, np.int16), [many[1]], [many[2]])
    assert one_seed is not None
    assert one_seed.low > 0
    assert not one_seed.significant
