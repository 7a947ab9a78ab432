"""The controls' vectors, computed by hand: strictly before a moment, and of the training part alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge import item_vectors
from llm4msr.knowledge.controls import count_vectors, history_vectors, scenario_counts, scenario_items
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.item_vectors import text_vectors


@pytest.fixture(scope="module")
def asked(shop: PreparedData) -> tuple[np.ndarray, np.ndarray]:
    """Users and moments: some are exactly those of a positive."""
    events = shop.positives.sort("time")
    return events["user"].to_numpy()[5::37].astype(np.int32), events["time"].to_numpy()[5::37]


def before(shop: PreparedData, user: int, time: int) -> list[dict[str, int]]:
    found = [e for e in shop.positives.iter_rows(named=True) if e["user"] == user and e["time"] < time]
    return sorted(found, key=lambda e: e["time"])


def test_counts_are_of_positives_strictly_before(shop: PreparedData, asked: tuple[np.ndarray, np.ndarray]) -> None:
    found = count_vectors(shop, *asked)
    kinds = len(shop.schema.behaviours)
    for row, (user, time) in enumerate(zip(*asked, strict=True)):
        counts = np.zeros(shop.scenario_count * kinds)
        for event in before(shop, user, time):
            counts[event["scenario"] * kinds + event["behaviour"]] += 1
        np.testing.assert_allclose(found[row], np.log1p(counts), rtol=1e-6)
    assert found.any()


@pytest.mark.parametrize("most", [1, 3, 100])
def test_a_history_is_the_mean_of_the_latest_positives_before(
    shop: PreparedData, asked: tuple[np.ndarray, np.ndarray], most: int
) -> None:
    items = np.random.default_rng(0).standard_normal((shop.items.height, 4)).astype(np.float32)
    found = history_vectors(shop, *asked, most, items).reshape(len(asked[0]), shop.scenario_count, 4)
    for row, (user, time) in enumerate(zip(*asked, strict=True)):
        for d in range(shop.scenario_count):
            events = [e for e in before(shop, user, time) if e["scenario"] == d]
            expected = np.zeros(4) if not events else items[[e["item"] for e in events[-most:]]].mean(0)
            if len({e["time"] for e in events[-most - 1 :]}) == len(events[-most - 1 :]):  # no tie at the cut
                np.testing.assert_allclose(found[row, d], expected, atol=1e-6)


def test_scenarios_are_described_by_the_training_part(shop: PreparedData) -> None:
    items = np.random.default_rng(1).standard_normal((shop.items.height, 3)).astype(np.float32)
    counts, means = scenario_counts(shop), scenario_items(shop, items)
    assert shop.split.valid < shop.rows
    for d in range(shop.scenario_count):
        rows = [r for r in range(shop.split.valid) if shop.scenario[r] == d]
        clicks = sum(int(shop.label[r]) for r in rows)
        np.testing.assert_allclose(counts[d], [math.log1p(len(rows)), clicks / len(rows)], rtol=1e-6)
        np.testing.assert_allclose(means[d], items[[int(shop.item[r]) for r in rows]].mean(0), atol=1e-5)


def test_words_of_items_after_training_change_no_vector() -> None:
    training = np.array([True, True, True, False, False])
    texts = ["red tea", "green tea", "red cup", "red tea", "blue tea"]
    other = [*texts[:4], "blue tea blue cup mug mug"]
    np.testing.assert_array_equal(text_vectors(texts, training, 2)[:4], text_vectors(other, training, 2)[:4])


@pytest.mark.parametrize("kind", ["text", "categories"])
def test_item_vectors_are_fitted_on_items_of_the_training_part(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    trained = np.arange(shop.items.height) % 4 > 0
    monkeypatch.setattr(item_vectors, "trained_items", lambda _: trained)
    known = item_vectors.item_vectors(shop_knowledge, shop, (kind,), 3)
    raw: Any = {"text": KnowledgeFolder.item_texts, "categories": item_vectors._categories}[kind]

    def changed(*args: Any) -> list[str]:
        texts, codes = raw(*args), args[-1]
        return [t if trained[c] else f"{t} strange words" for t, c in zip(texts, codes, strict=True)]

    owner = {"text": KnowledgeFolder, "categories": item_vectors}[kind]
    monkeypatch.setattr(owner, {"text": "item_texts", "categories": "_categories"}[kind], changed)
    others = item_vectors.item_vectors(shop_knowledge, shop, (kind,), 3)
    np.testing.assert_array_equal(known.vectors[trained], others.vectors[trained])
