"""Each penalty pulls on the weights that it is about, and on no others."""

from __future__ import annotations

from typing import Any

import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.tables import load_knowledge
from llm4msr.models.model import ModelConfig, MultiScenarioModel, PartChoice, build_model
from llm4msr.training.batches import BatchSource
from llm4msr.training.recorded import training_step
from llm4msr.training.train_config import TrainConfig


@pytest.fixture(scope="module")
def source(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> BatchSource:
    needs: Any = {"own", "others", "item"}
    return BatchSource(shop, load_knowledge(shop_knowledge, shop, KnowledgeConfig(dimensions=5), needs))


def trained(source: BatchSource, **settings: Any) -> MultiScenarioModel:
    """A model after three steps."""
    config = ModelConfig(
        embedding_dim=4,
        backbone=PartChoice(name="shared_bottom", settings={"hidden": [8]}),
        enhancer=PartChoice(name="llm4msr", settings={"hidden": 4, "rank": 2, "gate_start": 0.0}),
    )
    model = build_model(config, source.layout, 3, source.widths, seed=0)
    plain = {"batch_size": 256, "learning_rate": 0.01, "embedding_decay": 0.0, "device": "cpu"}
    train = TrainConfig.checked(plain | settings)
    step = training_step(model, train.optimizers(model), source, train)
    for place, batch in enumerate(step.batches(0)):
        if place == 3:
            break
        step(batch)
    return model


def size(model: MultiScenarioModel, part: str) -> float:
    return sum(float(p.detach().square().sum()) for name, p in model.named_parameters() if part in name)


def test_weight_decay_shrinks_all_weights_but_the_embeddings(source: BatchSource) -> None:
    free, decayed = trained(source), trained(source, weight_decay=1.0)
    assert size(decayed, "backbone") < size(free, "backbone")
    assert size(decayed, "enhancer") < size(free, "enhancer")


def test_generated_decay_shrinks_what_makes_the_generated_weights(source: BatchSource) -> None:
    free, decayed = trained(source), trained(source, generated_decay=100.0)
    assert size(decayed, "generators") < size(free, "generators")


def test_embedding_decay_shrinks_the_embeddings(source: BatchSource) -> None:
    assert size(trained(source, embedding_decay=1.0), "embedding.table") < size(trained(source), "embedding.table")
