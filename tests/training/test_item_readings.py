"""Each item is read once before many rows are scored, and the scores are those of reading it for each row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.tables import Knowledge, load_knowledge
from llm4msr.models.model import ModelConfig, MultiScenarioModel, PartChoice, build_model
from llm4msr.training.batches import BatchSource
from llm4msr.training.columns import Columns, MappedColumns, ResidentColumns
from llm4msr.training.evaluation import predict
from llm4msr.training.item_readings import ItemReadings
from tests.models.zoo import ENHANCERS, make_model, make_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def knowledge(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> Knowledge:
    return load_knowledge(shop_knowledge, shop, KnowledgeConfig(dimensions=5), {"own", "others", "item"})


def model_of(source: BatchSource, data: PreparedData, enhancer: str, **settings: Any) -> MultiScenarioModel:
    config = ModelConfig(
        backbone=PartChoice(name="shared_bottom"), enhancer=PartChoice(name=enhancer, settings=settings)
    )
    return build_model(config, source.layout, data.scenario_count, source.widths, 0).eval()


@pytest.mark.parametrize(("columns", "cores"), [(MappedColumns, 1), (MappedColumns, 8), (ResidentColumns, 8)])
@pytest.mark.parametrize(
    ("enhancer", "settings"),
    [
        ("llm4msr", {}),
        ("llm4msr", {"candidate": False}),
        ("llm4msr", {"match": False, "user": "parallel"}),
        ("llm4msr_light", {}),
        ("knowledge_field", {"scenario": False}),
    ],
)
def test_scores_are_those_of_rows_that_bring_their_items_vectors(
    shop: PreparedData,
    knowledge: Knowledge,
    enhancer: str,
    settings: dict[str, Any],
    columns: type[Columns],
    cores: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llm4msr.training.batches.usable_cores", lambda: cores)  # 1: no thread makes batches ahead
    source = BatchSource(shop, knowledge, CPU, columns(shop, knowledge, CPU))  # type: ignore[call-arg]
    model = model_of(source, shop, enhancer, **settings)
    assert model.enhancer.reads_items == enhancer.startswith("llm4msr")
    first = shop.split.range("test")[0]
    for batch in source.part("test", 100, enhancer=model.enhancer):
        assert (batch.item is None, batch.item_read is None) == (
            model.enhancer.reads_items,
            not model.enhancer.reads_items,
        )
    plain = np.zeros(len(range(*shop.split.range("test"))), dtype=np.float32)
    with torch.inference_mode():
        for batch in source.part("test", 100):
            assert batch.item is not None
            plain[batch.rows.numpy() - first] = model(batch)[0].numpy()
    np.testing.assert_allclose(predict(model, shop, source, "test"), plain, rtol=1e-5, atol=1e-6)


def test_each_item_of_the_rows_is_read_once(
    shop: PreparedData, knowledge: Knowledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm4msr.training.item_readings._AT_ONCE", 7)
    assert knowledge.item is not None
    seen: list[Tensor] = []

    def read(vectors: Tensor) -> Tensor:
        seen.append(vectors)
        return 2 * vectors

    rows = np.arange(300, 420)
    readings = ItemReadings(knowledge.item, [range(300, 350), range(350, 420)], read)
    occurring = np.unique(knowledge.item.index[rows])
    assert sum(len(vectors) for vectors in seen) == len(occurring)
    assert max(len(vectors) for vectors in seen) <= 7
    batch = BatchSource(shop, knowledge).make(rows)
    assert batch.item is not None
    assert torch.equal(readings.of(batch.rows.numpy()), 2 * batch.item)


@pytest.mark.parametrize("enhancer", [name for name in ENHANCERS if name.startswith("llm4msr")])
def test_scoring_changes_no_batch(enhancer: str) -> None:
    model, batch = make_model("star", enhancer).eval(), make_rows([3, 0, 4])
    if model.enhancer.reads_items:
        assert batch.item is not None
        batch = replace(batch, item=None, item_read=model.enhancer.read_items(batch.item).detach())
    with torch.inference_mode():
        assert torch.equal(model(batch)[0], model(batch)[0])


def test_a_part_may_have_no_rows(knowledge: Knowledge) -> None:
    assert knowledge.item is not None
    readings = ItemReadings(knowledge.item, [], lambda vectors: vectors)
    assert readings.of(np.arange(5, 5)).shape == (0, 6)
