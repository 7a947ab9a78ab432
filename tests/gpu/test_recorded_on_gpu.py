"""Replayed steps leave what steps operation by operation leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.tables import NO_KNOWLEDGE, Knowledge, load_knowledge
from llm4msr.models.batch import Batch
from llm4msr.training.batches import BatchSource
from llm4msr.training.columns import ResidentColumns
from llm4msr.training.order import Drawing
from llm4msr.training.padding import Numbers
from llm4msr.training.recorded import RecordedStep, training_step
from llm4msr.training.train_config import TrainConfig
from tests.gpu.conftest import GPU
from tests.training.test_recorded import PAIRS, model_of

TRAIN = TrainConfig(batch_size=128, rows_together=4, learning_rate=0.003)


@pytest.fixture(scope="module")
def knowledge(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> Knowledge:
    needs: Any = {"own", "others", "item", "scenario"}
    return load_knowledge(shop_knowledge, shop, KnowledgeConfig(dimensions=5), needs)


def resident(shop: PreparedData, knowledge: Knowledge) -> BatchSource:
    return BatchSource(shop, knowledge, GPU, ResidentColumns(shop, knowledge, GPU))


def steps_of(source: BatchSource, pair: tuple[str, str], config: TrainConfig) -> tuple[Any, list[float], Any]:
    """The model after two epochs, the sum of the losses after each step, and the step itself."""
    model = model_of(source, *pair).to(GPU)
    step: Any = training_step(model, config.optimizers(model), source, config)
    assert isinstance(step, RecordedStep) == config.cuda_graphs
    sums = []
    for epoch in range(2):
        for batch in step.batches(epoch):
            step(batch)
            sums.append(float(step.loss_sum))
    return model, sums, step


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_losses_and_weights_are_those_of_plain_steps(
    shop: PreparedData, knowledge: Knowledge, pair: tuple[str, str]
) -> None:
    source = resident(shop, knowledge)
    for updates in ("exact", "rows"):
        config = TRAIN.model_copy(update={"embedding_updates": updates})
        recorded, sums, _ = steps_of(source, pair, config)
        plain, expected, _ = steps_of(source, pair, config.model_copy(update={"cuda_graphs": False}))
        np.testing.assert_allclose(sums, expected, rtol=2e-3)
        for (name, one), other in zip(plain.state_dict().items(), recorded.state_dict().values(), strict=True):
            # Adam divides by the size of the gradient: where that is nearly zero, its rounding decides. STAR's
            # normalisation leaves nothing but rounding of a feature that is the same in all rows of a scenario.
            far = (other - one).abs() > 5e-3 + 1e-2 * one.abs()
            assert float(far.float().mean()) < (0.25 if "norm" in name else 0.05), name


@pytest.mark.parametrize("backbone", ["star", "shared_bottom", "ple"])
def test_batches_without_a_scenario_have_recordings_of_their_own(
    shop: PreparedData, knowledge: Knowledge, backbone: str
) -> None:
    source = resident(shop, knowledge)
    config = TRAIN.model_copy(update={"batch_size": 16, "learning_rate": 0.001, "embedding_updates": "exact"})
    recorded, sums, step = steps_of(source, (backbone, "llm4msr"), config)
    plain, expected, _ = steps_of(source, (backbone, "llm4msr"), config.model_copy(update={"cuda_graphs": False}))
    played = [shape.room for shape, recording in step._recordings.items() if recording.graph is not None]
    assert len(played) > 1
    assert any((room == 0).any() for room in played)
    np.testing.assert_allclose(np.diff(sums), np.diff(expected), rtol=0.05, atol=0.02)
    for (name, one), other in zip(plain.named_parameters(), recorded.parameters(), strict=True):
        far = (other - one).abs() > 5e-3 + 2e-2 * one.abs()
        assert float(far.float().mean()) < (0.25 if "norm" in name else 0.1), name


def test_batches_that_do_not_fit_come_between(shop: PreparedData, knowledge: Knowledge) -> None:
    source = resident(shop, knowledge)
    scenario = np.asarray(shop.scenario[: shop.split.valid])
    lacking = np.flatnonzero(scenario == 2)[:40]
    losses, kinds = [], []
    for graphs in (True, False):
        config = TRAIN.model_copy(update={"cuda_graphs": graphs})
        model = model_of(source, "star", "llm4msr").to(GPU)
        step: Any = training_step(model, config.optimizers(model), source, config)
        assert isinstance(step, RecordedStep) == graphs
        sums = []
        for rows in source.chunks(Drawing(128, together=4), 0):
            for some in (rows, lacking):
                batch = step.padded(some) if graphs else source.make(some)
                kinds.append(type(batch))
                step(batch)
                sums.append(float(step.loss_sum))
        losses.append(np.diff(sums))
    assert {Numbers, Batch} <= set(kinds)
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.03, atol=3e-3)


def test_what_dropout_drops_differs_from_replay_to_replay(shop: PreparedData) -> None:
    source = resident(shop, NO_KNOWLEDGE)
    config = TRAIN.model_copy(update={"learning_rate": 1e-12, "embedding_decay": 0.0})
    model = model_of(source, "shared_bottom", "none").to(GPU)
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_hook(lambda _, __, out: torch.nn.functional.dropout(out, 0.5))
    step = training_step(model, config.optimizers(model), source, config)
    batch = next(b for b in step.batches(0) if isinstance(b, Numbers))
    losses = []
    for _ in range(8):
        step.loss_sum.zero_()
        step(batch)
        losses.append(float(step.loss_sum))
    assert len({round(loss, 7) for loss in losses[4:]}) == 4  # replays


@pytest.mark.parametrize("backbone", ["star", "shared_bottom"])
def test_a_compiled_model_learns_the_same(shop: PreparedData, knowledge: Knowledge, backbone: str) -> None:
    source = resident(shop, knowledge)
    found = [steps_of(source, (backbone, "llm4msr"), TRAIN.model_copy(update={"compile": c})) for c in (False, True)]
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=2e-3)
    assert all(recording.graph is not None for recording in found[1][2]._recordings.values())
    plain, compiled = (model for model, *_ in found)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_bfloat16_is_recorded(shop: PreparedData, knowledge: Knowledge) -> None:
    source = resident(shop, knowledge)
    config = TRAIN.model_copy(update={"precision": "bfloat16"})
    _, sums, _ = steps_of(source, ("star", "llm4msr"), config)
    _, expected, _ = steps_of(source, ("star", "llm4msr"), config.model_copy(update={"cuda_graphs": False}))
    np.testing.assert_allclose(sums, expected, rtol=0.02)
