"""How well counting alone predicts the labels of the test part: without any model, and so what every model must beat.

It also shows what sampled negatives give away: where users choose at random, every line should be near 0.5.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import logit

from llm4msr.data.choices import Choices
from llm4msr.data.prepared import PreparedData
from llm4msr.report.sheets import Cell, Sheet
from llm4msr.training.metrics import Scores, score

_PRIOR_ROWS = 20.0
"""A click rate of few rows is drawn towards its scenario's: as many rows with that click rate are added to it."""


def counting(data: PreparedData) -> dict[str, Scores]:
    """The metrics of counts as scores of the test rows, by what is counted.

    Rows and click rates are those of the training part, in the row's own scenario. Earlier choices are all positives of
    the history before the row's time, in its scenario.
    """
    first, last = data.split.range("test")
    (item_rows, item), (_, user) = _of_training(data, data.item), _of_training(data, data.user)
    counted = {
        "training rows of the item": item_rows,
        "click rate of the item": item,
        "click rate of the user": user,
        "click rates of item and user": item + user,
        "whether the user chose the item before": _chosen_before(data),
    }
    label, scenario = np.asarray(data.label[first:last]), np.asarray(data.scenario[first:last])
    return {
        name: score(label, values.astype(np.float32), scenario, data.scenario_count) for name, values in counted.items()
    }


def counting_sheet(data: PreparedData) -> Sheet:
    """The AUC of each count, by scenario."""
    lines = [
        [Cell(name), *(Cell(_shown(s.auc)) for s in scores.scenarios), Cell(_shown(scores.mean_auc))]
        for name, scores in counting(data).items()
    ]
    header = ["what is counted", *(s.title for s in data.schema.scenarios), "mean"]
    note = "AUC in the test part. Rows and click rates are those of the training part, in the row's own scenario."
    return Sheet("What counting alone predicts", header, lines, 1, note)


def _shown(auc: float | None) -> str:
    return "" if auc is None else f"{auc:.4f}"


def _of_training(data: PreparedData, ids: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each test row, what training says of its id in its scenario: `(n,)` each.

    The number of rows as log1p, and the logit of the click rate minus that of the scenario.
    """
    (first, last), valid, count = data.split.range("test"), data.split.valid, data.scenario_count
    scenario, label = np.asarray(data.scenario), np.asarray(data.label[:valid])
    groups = np.asarray(ids).astype(np.int64) * count + scenario  # a number for each pair of an id and a scenario
    past, here, most = groups[:valid], groups[first:last], int(groups.max(initial=0)) + 1
    rows, clicks = np.bincount(past, minlength=most)[here], np.bincount(past, weights=label, minlength=most)[here]
    shown = np.bincount(scenario[:valid], minlength=count)
    rate = (np.bincount(scenario[:valid], weights=label, minlength=count) + 1) / (shown + 2)
    usual = rate[scenario[first:last]]
    found = (clicks + _PRIOR_ROWS * usual) / (rows + _PRIOR_ROWS)
    return np.log1p(rows), np.asarray(logit(found) - logit(usual))


def _chosen_before(data: PreparedData) -> NDArray[np.bool_]:
    """Whether each test row's user has an earlier positive with the row's item in the row's scenario, `(n,)`."""
    rows = np.arange(*data.split.range("test"))
    out = np.zeros(len(rows), dtype=bool)
    for d in range(data.scenario_count):
        events = data.positives.filter(pl.col("scenario") == d)
        places = np.flatnonzero(np.asarray(data.scenario)[rows] == d)
        if events.height and len(places):
            row = (np.asarray(c)[rows[places]].astype(np.int64) for c in (data.user, data.item, data.time))
            out[places] = Choices(events).before(*row)
    return out
