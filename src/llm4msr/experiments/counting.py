"""How well counting alone predicts the labels of the test part: without any model, and so what every model must beat.

It also shows what sampled negatives give away: where users choose at random, every line should be near 0.5.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

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
    item, user = _logits(data, data.item), _logits(data, data.user)
    counted = {
        "training rows of the item": np.log1p(_rows(data, data.item)),
        "click rate of the item": item,
        "click rate of the user": user,
        "click rates of item and user": item + user,
        "whether the user chose the item before": _chosen_before(data),
    }
    first, last = data.split.range("test")
    label, scenario = np.asarray(data.label[first:last]), np.asarray(data.scenario[first:last])
    return {
        name: score(label, values[first:last].astype(np.float32), scenario, data.scenario_count)
        for name, values in counted.items()
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


def _groups(data: PreparedData, ids: NDArray[np.int32]) -> NDArray[np.int64]:
    """A number for each pair of a scenario and an id, `(N,)`."""
    return np.asarray(ids).astype(np.int64) * data.scenario_count + np.asarray(data.scenario)


def _rows(data: PreparedData, ids: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many training rows each row's id has in the row's scenario, `(N,)`."""
    groups = _groups(data, ids)
    return np.bincount(groups[: data.split.valid], minlength=int(groups.max(initial=0)) + 1)[groups]


def _logits(data: PreparedData, ids: NDArray[np.int32]) -> NDArray[np.float64]:
    """The logit of the click rate of each row's id in the row's scenario, minus that of the scenario itself, `(N,)`."""
    groups, split = _groups(data, ids), data.split.valid
    scenario, label = np.asarray(data.scenario), np.asarray(data.label[:split])
    rows = np.bincount(scenario[:split], minlength=data.scenario_count)
    rate = (np.bincount(scenario[:split], weights=label, minlength=data.scenario_count) + 1) / (rows + 2)
    most = int(groups.max(initial=0)) + 1
    clicks = np.bincount(groups[:split], weights=label, minlength=most)[groups] + _PRIOR_ROWS * rate[scenario]
    found = clicks / (_rows(data, ids) + _PRIOR_ROWS)
    return np.asarray(_logit(found) - _logit(rate)[scenario])


def _logit(rate: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(rate) - np.log1p(-rate))


def _chosen_before(data: PreparedData) -> NDArray[np.bool_]:
    """Whether each row's user has an earlier positive with the row's item in the row's scenario, `(N,)`."""
    out = np.zeros(data.rows, dtype=bool)
    for d in range(data.scenario_count):
        events = data.positives.filter(pl.col("scenario") == d)
        here = np.flatnonzero(np.asarray(data.scenario) == d)
        if events.height and len(here):
            row = (np.asarray(column)[here].astype(np.int64) for column in (data.user, data.item, data.time))
            out[here] = Choices(events).before(*row)
    return out
