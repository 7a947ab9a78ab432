"""Columns that stay on a device give what columns on disk give."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.states import Source
from llm4msr.knowledge.tables import NO_KNOWLEDGE, Knowledge, load_knowledge
from llm4msr.training.columns import MappedColumns, Picked, ResidentColumns, columns_of

CPU = torch.device("cpu")
NEEDS: list[set[Source]] = [set(), {"own", "others", "item"}, {"prompted"}, {"item"}]


@pytest.mark.parametrize("needs", NEEDS, ids=lambda needs: " ".join(sorted(needs)) or "nothing")
@pytest.mark.parametrize("own_states", [True, False])
def test_both_kinds_of_columns_gather_the_same(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, needs: set[Source], own_states: bool
) -> None:
    knowledge = NO_KNOWLEDGE
    if needs:
        knowledge = load_knowledge(shop_knowledge, shop, KnowledgeConfig(dimensions=4), needs)
    random = np.random.default_rng(0)
    rows = random.permutation(shop.rows)[:300]
    picked = Picked(rows)
    if knowledge.users and not own_states:
        picked = Picked(rows, np.array([5, 0, 17]), random.integers(0, 3, 300))
    mapped, resident = (kind(shop, knowledge, CPU).gather(picked) for kind in (MappedColumns, ResidentColumns))
    for name in (f.name for f in fields(mapped)):
        one, other = getattr(mapped, name), getattr(resident, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype
            torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True, msg=name)


def test_what_the_copies_take_is_what_is_said(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> None:
    knowledge = load_knowledge(shop_knowledge, shop, KnowledgeConfig(dimensions=4), {"own", "others", "item"})
    columns = ResidentColumns(shop, knowledge, CPU)
    held = {t.data_ptr(): t for t in (columns._ids, columns._numeric, columns._label)}
    held |= {t.data_ptr(): t for pair in (*columns._users, columns._item or ()) for t in pair}
    assert sum(t.numel() * t.element_size() for t in held.values()) == ResidentColumns.bytes_of(shop, knowledge)


def test_tables_that_share_their_vectors_are_copied_once(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> None:
    knowledge = load_knowledge(shop_knowledge, shop, KnowledgeConfig(dimensions=4), {"own"})
    twice = Knowledge(users={"own": knowledge.users["own"], "others": knowledge.users["own"]})
    (_, one), (_, other) = ResidentColumns(shop, twice, CPU)._users
    assert one.data_ptr() == other.data_ptr()


def test_on_a_cpu_columns_stay_on_disk(shop: PreparedData) -> None:
    assert isinstance(columns_of(shop, NO_KNOWLEDGE, CPU), MappedColumns)
