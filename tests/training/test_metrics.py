from __future__ import annotations

import math

import numpy as np
import pytest

from llm4msr.data.classes import FEWEST
from llm4msr.training.metrics import Score, Scores, score, score_rows


def _labels(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    return np.array(values, dtype=np.int8)


def _logits(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


def test_auc_and_log_loss_by_hand() -> None:
    found = score_rows(_labels(1, 0, 1, 0), _logits(2.0, 1.0, 0.0, -1.0))
    assert found.auc == 0.75  # of four pairs, only (third, second) is in the wrong order
    losses = [math.log1p(math.exp(-2)), math.log1p(math.exp(1)), math.log(2), math.log1p(math.exp(-1))]
    assert found.log_loss == pytest.approx(sum(losses) / 4)


def test_one_class_has_no_auc_but_a_log_loss() -> None:
    assert score_rows(_labels(0, 0), _logits(0.0, 0.0)) == Score(2, 0, None, math.log(2))


def test_no_row_has_neither() -> None:
    assert score_rows(_labels(), _logits()) == Score(0, 0, None, None)


def test_extreme_logits_keep_the_log_loss_finite() -> None:
    assert score_rows(_labels(1, 0), _logits(-500.0, 500.0)).log_loss == pytest.approx(500.0)


def test_the_mean_auc_leaves_out_scenarios_where_it_is_undefined() -> None:
    label, logit = _labels(1, 0, 0, 0), _logits(1.0, 0.0, 3.0, 2.0)
    scores = score(label, logit, np.array([0, 0, 1, 1], dtype=np.int16), 3)
    assert [s.auc for s in scores.scenarios] == [1.0, None, None]
    assert scores.mean_auc == 1.0
    assert scores.overall.rows == 4


def test_where_no_auc_is_defined_the_log_loss_selects() -> None:
    scores = score(_labels(0, 0), _logits(0.0, 0.0), np.zeros(2, dtype=np.int16), 1)
    assert scores.mean_auc is None
    assert scores.selection == pytest.approx(-math.log(2))


def test_scores_survive_json() -> None:
    scores = score(_labels(1, 0, 1), _logits(1.0, 0.0, 3.0), np.array([0, 0, 1], dtype=np.int16), 2)
    assert Scores.from_dict(scores.as_dict(["a", "b"])) == scores


def test_a_scenario_of_few_rows_is_shown_but_is_in_no_mean() -> None:
    random = np.random.default_rng(0)
    label = np.array([1, 0] * FEWEST + [1, 0, 0], dtype=np.int8)
    scenario = np.array([0] * (2 * FEWEST) + [1] * 3, dtype=np.int16)
    logit = np.append(random.standard_normal(2 * FEWEST), [-5.0, 1.0, 2.0]).astype(np.float32)
    scores = score(label, logit, scenario, 2)
    assert scores.scenarios[1].auc == 0.0
    assert scores.selection == scores.scenarios[0].auc
    assert scores.mean_auc == scores.selection
    last = slice(2 * FEWEST, None)
    few = score(label[last], logit[last], scenario[last], 2)
    assert few.selection == few.mean_auc == 0.0


def test_chance_is_three_standard_errors_of_the_mean_above_a_half() -> None:
    first, second = Score(100, 40, 0.6, 0.5), Score(200, 50, 0.6, 0.5)
    variances = [(40 + 60 + 1) / (12 * 40 * 60), (50 + 150 + 1) / (12 * 50 * 150)]
    expected = 0.5 + 3 * (sum(variances) / 4) ** 0.5  # the variance of the mean of two
    assert Scores(first, (first, second)).chance == pytest.approx(expected)


def test_a_constant_is_worth_the_entropy_of_the_click_rate() -> None:
    assert Score(4, 1, None, None).constant == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert Score(4, 0, None, None).constant == 0
    assert Score(0, 0, None, None).constant is None
