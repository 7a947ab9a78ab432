"""Knowledge replaced by something else, to see whether it is the knowledge that helps."""

from __future__ import annotations

import numpy as np
import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.controls import Control, disturbed
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.tables import Knowledge, load_knowledge


@pytest.fixture(scope="module")
def knowledge(shop_knowledge: KnowledgeFolder, shop: PreparedData) -> Knowledge:
    return load(shop, shop_knowledge)


def load(shop: PreparedData, folder: KnowledgeFolder, **settings: object) -> Knowledge:
    config = KnowledgeConfig.model_validate({"dimensions": 5, "half_life_days": 2.0, **settings})
    return load_knowledge(folder, shop, config, {"scenario", "prompted", "own", "item"})


def test_random_vectors_are_one_a_subject(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, knowledge: Knowledge
) -> None:
    table = load(shop, shop_knowledge, control="random").users["prompted"]
    subjects = shop_knowledge.level("user")[0].sort("subject", "time")["subject"].to_numpy()
    for user in np.unique(subjects):
        assert len(np.unique(table.vectors[1:][subjects == user], axis=0)) == 1
    assert len(np.unique(table.vectors[1:], axis=0)) == len(np.unique(subjects))
    np.testing.assert_array_equal(table.index, knowledge.users["prompted"].index)


def test_random_vectors_are_not_the_true_ones(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, knowledge: Knowledge
) -> None:
    found = load(shop, shop_knowledge, control="random")
    assert found.item is not None
    assert knowledge.item is not None
    assert found.item.vectors.shape == knowledge.item.vectors.shape
    assert not np.isclose(found.item.vectors[1:], knowledge.item.vectors[1:]).all(1).any()


def test_shuffled_snapshots_are_the_same_vectors_at_the_same_time(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, knowledge: Knowledge
) -> None:
    found = load(shop, shop_knowledge, control="shuffled").users["prompted"].vectors[1:]
    true = knowledge.users["prompted"].vectors[1:]
    times = shop_knowledge.level("user")[0].sort("subject", "time")["time"].to_numpy()
    for moment in np.unique(times):
        assert sorted(found[times == moment].tolist()) == sorted(true[times == moment].tolist())
    assert not np.array_equal(found, true)


def test_shuffled_items_and_scenarios_are_the_same_vectors(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, knowledge: Knowledge
) -> None:
    found = load(shop, shop_knowledge, control="shuffled")
    assert found.item is not None
    assert knowledge.item is not None
    assert sorted(found.item.vectors.tolist()) == sorted(knowledge.item.vectors.tolist())
    assert not np.array_equal(found.item.vectors, knowledge.item.vectors)
    assert sorted(np.asarray(found.scenario).tolist()) == sorted(np.asarray(knowledge.scenario).tolist())


def test_a_seed_repeats_a_control_and_another_changes_it(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> None:
    one, same, other = (
        load(shop, shop_knowledge, control="random", control_seed=seed).users["own"].vectors for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_no_vector_is_shuffled_to_its_own_subject(count: int) -> None:
    vectors, subjects = np.arange(3.0 * count, dtype=np.float32).reshape(count, 3), np.arange(count)
    for seed in range(20):
        found = disturbed(vectors, subjects, Control("shuffled"), seed, "scenario")
        assert (found != vectors).any(axis=1).all()
        assert sorted(found.tolist()) == vectors.tolist()
