from __future__ import annotations

import numpy as np
import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.experiments import slices
from llm4msr.experiments.slices import COLD, EARLY, HEAVY, LATE, LIGHT, NEW
from tests.knowledge.kiosk import Event, kiosk

TRAIN = [(at, who, what, "h", 0, 0) for at, who, what in ((1, "ann", "tea"), (2, "bob", "tea"), (3, "cid", "bun"))] * 10
VALID = [(12, "bob", "tea", "h", 0, 0)] * 4
TEST = [
    (20, "ann", "tea", "h", 1, 0),
    (21, "bob", "coffee", "h", 0, 0),
    (23, "cid", "bun", "a", 0, 0),
    (24, "bob", "tea", "a", 1, 0),
]
HISTORY: list[Event] = [
    *((1, "ann", "tea", "h"), (2, "ann", "tea", "h"), (3, "ann", "bun", "h")),
    (4, "bob", "tea", "h"),
    (22, "cid", "tea", "h"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    rows = [*sorted(TRAIN), *VALID, *TEST]
    prepared = kiosk(tmp_path_factory.mktemp("slices") / "data", rows=rows, positives=HISTORY)
    assert prepared.split.rows - prepared.split.test == 4
    return prepared


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (NEW, [False, False, True, True]),  # cid was new everywhere until 22; bob has a positive in the hall
        (COLD, [False, True, False, False]),  # coffee has no row in training
        (LIGHT, [False, True, True, True]),
        (HEAVY, [True, False, False, False]),
        (EARLY, [True, True, False, False]),
        (LATE, [False, False, True, True]),
    ],
)
def test_slices_of_the_test_rows(data: PreparedData, name: str, expected: list[bool]) -> None:
    assert slices.test_slices(data)[name].tolist() == expected


def test_every_row_is_in_one_half_of_the_test_time(shop: PreparedData) -> None:
    found = slices.test_slices(shop)
    assert bool(np.logical_xor(found[EARLY], found[LATE]).all())
    assert {len(mask) for mask in found.values()} == {shop.split.rows - shop.split.test}
