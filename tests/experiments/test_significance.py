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


@pytest.mark.parametrize("user", [np.arange(8), np.array([0, 0, 1, 1, 2, 2, 3, 3]), np.array([5, 7, 7, 7, 5, 5, 7, 6])])
def test_the_interval_is_of_the_users_contributions_and_the_mean_that_of_the_seeds(user: np.ndarray) -> None:
    found = auc_difference(LABEL, np.zeros(8, np.int16), user, [OURS, OURS], [THEIRS, OURS])
    of_rows = np.zeros(8)
    for of_class, one, other in zip((1, 0), by_definition(OURS), by_definition(THEIRS), strict=True):
        difference = (one - other) / 2
        of_rows[of_class == LABEL] = (difference - difference.mean()) / len(difference)
    of_users = [of_rows[user == u].sum() for u in set(user)]
    deviation = (len(of_users) / (len(of_users) - 1) * np.square(of_users).sum()) ** 0.5
    expected = (roc_auc_score(LABEL, OURS) - roc_auc_score(LABEL, THEIRS)) / 2
    assert found is not None
    assert found.mean == pytest.approx(expected)
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, len(of_users) - 1) * deviation)


def test_the_interval_is_as_wide_as_that_of_drawing_users_again() -> None:
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(80, dtype=np.int32), 25)
    scenario = (np.arange(len(user)) % 2).astype(np.int16)
    likes, errs = random.normal(size=80)[user], random.normal(size=80)[user]  # of all rows of a user
    label = (likes + random.normal(size=len(user)) > 0.5).astype(np.int8)
    ours = (likes + 0.5 * random.normal(size=len(user))).astype(np.float32)
    theirs = (likes + 1.5 * errs + 0.5 * random.normal(size=len(user))).astype(np.float32)

    def difference(rows: np.ndarray) -> float:
        of_one = [rows[scenario[rows] == d] for d in (0, 1)]
        return float(np.mean([roc_auc_score(label[r], ours[r]) - roc_auc_score(label[r], theirs[r]) for r in of_one]))

    rows_of = np.arange(len(user)).reshape(80, 25)
    drawn = [difference(rows_of[random.integers(0, 80, 80)].ravel()) for _ in range(400)]
    found = auc_difference(label, scenario, user, [ours], [theirs])
    of_rows = auc_difference(label, scenario, np.arange(len(user), dtype=np.int32), [ours], [theirs])
    assert found is not None
    assert of_rows is not None
    assert found.mean == pytest.approx(difference(np.arange(len(user))))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.std(drawn), rel=0.15)
    assert of_rows.high - of_rows.low < 0.5 * (found.high - found.low)


def test_one_user_tells_nothing_of_others() -> None:
    found = auc_difference(LABEL, np.zeros(8, np.int16), np.zeros(8, np.int32), [OURS, OURS], [THEIRS, THEIRS])
    assert found is not None
    assert (found.low, found.high) == (-np.inf, np.inf)
    assert not found.significant


def test_a_scenario_of_one_class_is_left_out() -> None:
    label, score = np.append(LABEL, [1, 1]).astype(np.int8), np.append(OURS, [0.1, 0.2]).astype(np.float32)
    other = np.append(THEIRS, [0.9, 0.9]).astype(np.float32)
    scenario = np.array([0] * 8 + [1] * 2, dtype=np.int16)
    user = np.arange(10, dtype=np.int32)
    alone = auc_difference(LABEL, scenario[:8], user[:8], [OURS], [THEIRS])
    assert auc_difference(label, scenario, user, [score], [other]) == alone
    assert auc_difference(label[8:], scenario[8:], user[8:], [score[8:]], [other[8:]]) is None


def test_the_p_value_is_that_of_scipys_paired_test() -> None:
    a, b = np.array([0.71, 0.73, 0.70]), np.array([0.70, 0.70, 0.69])
    assert paired_p_value(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_p_value(np.array([0.1])) is None
    assert paired_p_value(np.array([0.0, 0.0])) is None


def test_without_a_seed_there_is_no_difference() -> None:
    assert auc_difference(LABEL, np.zeros(8, np.int16), np.arange(8, dtype=np.int32), [], []) is None


def test_a_scenario_of_few_rows_makes_nothing_significant() -> None:
    label = np.array([1, 0, 0, 0, 0, 0, 0], dtype=np.int8)
    user = np.arange(210, dtype=np.int32)
    ours, theirs = (np.array([top, *range(6)], dtype=np.float32) for top in (9, -9))
    found = auc_difference(label, np.zeros(7, np.int16), user[:7], [ours], [theirs])
    assert found is not None
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)  # no variance where there is one positive
    assert not found.significant
    label_of_two, rows = np.concatenate([label, LABEL.repeat(10)]), np.array([0] * 7 + [1] * 80, np.int16)
    both = [np.concatenate([small, large.repeat(10)]) for small, large in ((ours, OURS), (theirs, THEIRS))]
    beside = auc_difference(label_of_two, rows, user[:87], [both[0]], [both[1]])
    assert beside == auc_difference(LABEL.repeat(10), rows[7:], user[7:87], [OURS.repeat(10)], [THEIRS.repeat(10)])
    many = np.repeat(label, 30), np.repeat(ours, 30), np.repeat(theirs, 30)
    again = many[1] + np.where(np.arange(210) == 45, 20, 0).astype(np.float32)  # another seed, a little worse
    enough = auc_difference(many[0], np.zeros(210, np.int16), user, [many[1], again], [many[2], many[2]])
    assert enough is not None
    assert enough.significant
    one_seed = auc_difference(many[0], np.zeros(210, np.int16), user, [many[1]], [many[2]])
    assert one_seed is not None
    assert one_seed.low > 0
    assert not one_seed.significant
