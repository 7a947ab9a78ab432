"""What counting predicts, beside the same counts made row by row."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from llm4msr.data.prepared import PreparedData
from llm4msr.experiments.counting import counting, counting_sheet


def by_hand(data: PreparedData) -> dict[str, NDArray[np.float64]]:
    """Each count, for each row of the test part."""
    scenario, label = np.asarray(data.scenario), np.asarray(data.label)
    training = np.arange(data.rows) < data.split.valid
    events = data.positives
    found: dict[str, list[float]] = {"rows": [], "item": [], "user": [], "chosen": []}
    for row in range(data.split.test, data.rows):
        here = training & (scenario == scenario[row])
        rate = (label[here].sum() + 1) / (here.sum() + 2)
        for name, ids in (("item", np.asarray(data.item)), ("user", np.asarray(data.user))):
            own = here & (ids == ids[row])
            share = (label[own].sum() + 20 * rate) / (own.sum() + 20)
            found[name].append(float(np.log(share / (1 - share)) - np.log(rate / (1 - rate))))
        found["rows"].append(float((here & (np.asarray(data.item) == data.item[row])).sum()))
        before = (events["time"].to_numpy() < data.time[row]) & (events["scenario"].to_numpy() == scenario[row])
        same = (events["user"].to_numpy() == data.user[row]) & (events["item"].to_numpy() == data.item[row])
        found["chosen"].append(float((before & same).any()))
    return {name: np.array(values) for name, values in found.items()}


def test_each_count_is_that_of_the_training_part_or_of_the_past(shop: PreparedData) -> None:
    hand = by_hand(shop)
    expected = {
        "training rows of the item": hand["rows"],
        "click rate of the item": hand["item"],
        "click rate of the user": hand["user"],
        "click rates of item and user": hand["item"] + hand["user"],
        "whether the user chose the item before": hand["chosen"],
    }
    first, last = shop.split.range("test")
    label, scenario = np.asarray(shop.label[first:last]), np.asarray(shop.scenario[first:last])
    found = counting(shop)
    assert list(found) == list(expected)
    assert hand["chosen"].any()
    for name, values in expected.items():
        for d, part in enumerate(found[name].scenarios):
            here = scenario == d
            assert part.auc == pytest.approx(roc_auc_score(label[here], values[here]), abs=1e-5), name


def test_the_table_names_every_scenario(shop: PreparedData) -> None:
    sheet = counting_sheet(shop)
    assert sheet.header == ["what is counted", *(s.title for s in shop.schema.scenarios), "mean"]
    assert all(0 < float(cell.text) < 1 for line in sheet.lines for cell in line[1:])
