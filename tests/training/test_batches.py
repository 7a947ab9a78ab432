from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.tables import load_knowledge
from llm4msr.models.readers import of_rows
from llm4msr.training.batches import BatchSource, prefetched
from llm4msr.training.order import Drawing


def test_rows_of_a_batch_come_sorted_by_scenario_and_keep_their_values(shop: PreparedData) -> None:
    batch = BatchSource(shop).make(np.array([900, 3, 512, 4]))
    rows = batch.rows.numpy()
    assert sorted(rows) == [3, 4, 512, 900]
    assert batch.scenario_ids().tolist() == shop.scenario[rows].tolist() == sorted(shop.scenario[rows])
    assert batch.label.tolist() == shop.label[rows].tolist()
    for place, name in enumerate(["user", "item", "colour", "hour"]):
        assert batch.categorical[:, place].tolist() == shop.field(name)[rows].tolist()
    np.testing.assert_array_equal(batch.numeric[:, 0].numpy(), shop.field("price")[rows])
    np.testing.assert_array_equal(batch.multi.numpy(), shop.field("tags")[rows])


def test_an_epoch_visits_each_training_row_once_in_another_order_each_time(shop: PreparedData) -> None:
    source = BatchSource(shop)
    first = [b.rows for b in source.epoch(Drawing(100), epoch=0)]
    second = [b.rows for b in source.epoch(Drawing(100), epoch=1)]
    assert sorted(torch.cat(first).tolist()) == list(range(shop.split.valid))
    assert sorted(torch.cat(second).tolist()) == list(range(shop.split.valid))
    assert sorted(first[0].tolist()) != sorted(second[0].tolist())
    assert len(first) == source.steps("train", 100)


def test_an_epoch_started_in_the_middle_gives_the_rest_of_the_same_batches(shop: PreparedData) -> None:
    source = BatchSource(shop)
    whole = [b.rows.tolist() for b in source.epoch(Drawing(64, seed=3), epoch=2)]
    assert [b.rows.tolist() for b in source.epoch(Drawing(64, seed=3), epoch=2, start=5)] == whole[5:]


def test_a_part_is_its_rows_in_order_of_time(shop: PreparedData) -> None:
    rows = torch.cat([b.rows.sort().values for b in BatchSource(shop).part("valid", 50)])
    assert rows.tolist() == list(range(*shop.split.range("valid")))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_each_row_is_given_its_states_once_or_for_itself(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm4msr.training.batches._OWN_STATES", share)
    knowledge = load_knowledge(shop_knowledge, shop, KnowledgeConfig(dimensions=4), {"own", "others", "item"})
    batch = BatchSource(shop, knowledge).make(np.arange(300, 420))
    assert batch.users is not None
    assert batch.item is not None
    assert knowledge.item is not None
    assert (batch.users.inverse is None) == (share == 0.0)
    order = batch.rows.numpy()
    pairs = {tuple(p) for p in np.stack([knowledge.users[n].index[order] for n in ("own", "others")], 1).tolist()}
    assert len(batch.users.vectors) == (120 if batch.users.inverse is None else len(pairs))
    vectors = of_rows(batch.users.vectors, batch.users.inverse).numpy()
    found = [vectors[:, :5], vectors[:, 5:], batch.item.numpy()]
    for part, table in zip(found, [*knowledge.users.values(), knowledge.item], strict=True):
        index = table.index[order]
        np.testing.assert_array_equal(part[:, :4], table.vectors[index])
        np.testing.assert_array_equal(part[:, 4], index == 0)  # says that nothing is known
    assert BatchSource(shop, knowledge).widths.users == (5, 5)


def test_rows_that_see_the_same_states_are_drawn_together(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> None:
    knowledge = load_knowledge(shop_knowledge, shop, KnowledgeConfig(dimensions=4), {"own", "others"})
    source = BatchSource(shop, knowledge)

    def states(together: int) -> tuple[int, list[int]]:
        batches = list(source.epoch(Drawing(100, together=together), epoch=0))
        seen = 0
        for batch in batches:
            rows = batch.rows.numpy()
            seen += len({(knowledge.users["own"].index[r], knowledge.users["others"].index[r]) for r in rows})
        return seen, sorted(torch.cat([b.rows for b in batches]).tolist())

    (alone, rows), (grouped, same_rows) = states(1), states(8)
    assert rows == same_rows == list(range(shop.split.valid))
    assert grouped < alone


def test_without_knowledge_rows_together_change_nothing(shop: PreparedData) -> None:
    plain, grouped = ([b.rows.tolist() for b in BatchSource(shop).epoch(Drawing(64, together=n), 0)] for n in (1, 8))
    assert plain == grouped


def test_prefetching_hands_on_an_error_of_the_maker() -> None:
    def maker() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    items = prefetched(maker())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_prefetching_ends_its_thread_when_the_consumer_stops_early() -> None:
    items = prefetched(iter(range(1000)))
    assert next(iter(items)) == 0
    items.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "llm4msr-batches"]
