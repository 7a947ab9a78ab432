"""A step on padded batches leaves what a step on the same rows as they are leaves."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.tables import Knowledge, load_knowledge
from llm4msr.models.backbones.shared_bottom import SharedBottom, SharedBottomConfig
from llm4msr.models.batch import Batch, PaddedOffsets, scenario_of_rows
from llm4msr.models.model import ModelConfig, MultiScenarioModel, PartChoice, build_model
from llm4msr.models.registry import BACKBONES as BACKBONE_TYPES
from llm4msr.training.batches import BatchSource
from llm4msr.training.columns import ResidentColumns
from llm4msr.training.optim import Optimizers
from llm4msr.training.padding import Numbers
from llm4msr.training.parallel import ALONE, Group
from llm4msr.training.recorded import PaddedStep, training_step, why_plain
from llm4msr.training.step import PlainStep
from llm4msr.training.train_config import TrainConfig
from tests.models.zoo import BACKBONES, ENHANCERS

CPU = torch.device("cpu")
TRAIN = TrainConfig(batch_size=256, rows_together=1)
EAGER = {
    "apg",
    "dynamic-network",
    "dynamic-network-full",
    "llm4msr-full",
    "llm4msr-paper",
}
"""What is not replayed: layers of many rows that are grouped by value."""


@pytest.fixture(scope="module")
def knowledge(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> Knowledge:
    needs: Any = {"own", "others", "item", "scenario"}
    return load_knowledge(shop_knowledge, shop, KnowledgeConfig(dimensions=5), needs)


def model_of(source: BatchSource, backbone: str, enhancer: str) -> MultiScenarioModel:
    name, settings = ENHANCERS[enhancer]
    config = ModelConfig(
        embedding_dim=4,
        backbone=PartChoice(name=backbone, settings=BACKBONES[backbone]),
        enhancer=PartChoice(name=name, settings=settings),
    )
    model = build_model(config, source.layout, 3, source.widths, seed=0)
    with torch.no_grad():
        model.embedding.table.weight.mul_(50)
    return model


def padded_step(
    model: MultiScenarioModel, source: BatchSource, config: TrainConfig, optimizers: Optimizers | None = None
) -> PaddedStep:
    return PaddedStep(PlainStep(model, optimizers or config.optimizers(model), source, config))


def replayable(model: MultiScenarioModel) -> bool:
    return model.backbone.replays() and model.enhancer.replays()


PAIRS = [(b, e) for b in BACKBONES for e in ENHANCERS if not {b, e} & EAGER]


@pytest.mark.parametrize(
    ("backbone", "enhancer", "updates"),
    [*((b, e, "exact") for b, e in PAIRS), *((b, e, "rows") for b, e in PAIRS if e == "llm4msr")],
)
def test_padding_changes_neither_gradients_nor_statistics(
    shop: PreparedData, knowledge: Knowledge, backbone: str, enhancer: str, updates: Any
) -> None:
    source = BatchSource(shop, knowledge, CPU, ResidentColumns(shop, knowledge, CPU))
    config = TRAIN.model_copy(update={"embedding_updates": updates})
    found = []
    for padded in (False, True):
        model = model_of(source, backbone, enhancer)
        assert replayable(model)
        optimizers = config.optimizers(model)
        step: Any = PlainStep(model, optimizers, source, config)
        if padded:
            step = padded_step(model, source, config, optimizers)
        first, second, *_ = step.batches(0)
        assert isinstance(first, Numbers if padded else Batch)
        assert (step(first), step(second)) == (256, 256)
        assert step.padded_steps == 2 * padded
        found.append((model, float(step.loss_sum)))
    (plain, plain_loss), (padded_model, padded_loss) = found
    assert padded_loss == pytest.approx(plain_loss, rel=1e-5)
    for (name, one), other in zip(plain.named_parameters(), padded_model.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            scale = float(one.grad.to_dense().abs().max())
            if backbone == "star" and enhancer.startswith("knowledge-field"):
                scale *= 100  # of a field that is constant in a scenario its normalisation leaves rounding alone
            torch.testing.assert_close(other.grad.to_dense(), one.grad.to_dense(), rtol=1e-3, atol=1e-3 * scale + 1e-8)
    for (name, kept), other_kept in zip(plain.named_buffers(), padded_model.buffers(), strict=True):
        torch.testing.assert_close(other_kept, kept, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("backbone", [b for b in BACKBONES if b not in EAGER])
def test_a_scenario_without_rows_keeps_its_parameters_as_in_plain_steps(
    shop: PreparedData, knowledge: Knowledge, backbone: str
) -> None:
    source = BatchSource(shop, knowledge, CPU, ResidentColumns(shop, knowledge, CPU))
    config = TrainConfig(batch_size=8, rows_together=2, learning_rate=1e-9, embedding_updates="exact")
    models = [model_of(source, backbone, "llm4msr") for _ in range(2)]
    plain = PlainStep(models[0], config.optimizers(models[0]), source, config)
    padded = padded_step(models[1], source, config)
    absent = []
    for one, other in islice(zip(plain.batches(0), padded.batches(0), strict=True), 40):
        plain(one)
        padded(other)
        if isinstance(other, Batch):
            continue
        absent.append((other.shape.room == 0).tolist())
        grads = ((p.grad, q.grad) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))
        for mine, theirs in grads:
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                torch.testing.assert_close(theirs, mine, rtol=1e-2, atol=1e-2 * float(mine.abs().max()) + 1e-7)
    assert padded.padded_steps == len(absent) > 20
    assert any(map(any, absent))
    for (name, kept), other_kept in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(other_kept, kept, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", sorted(EAGER))
def test_what_groups_rows_by_value_is_not_replayed(shop: PreparedData, knowledge: Knowledge, name: str) -> None:
    source = BatchSource(shop, knowledge)
    pair = (name, "none") if name in BACKBONES else ("star", name)
    assert not replayable(model_of(source, *pair))


def test_stars_statistics_leave_padding_out(shop: PreparedData, knowledge: Knowledge) -> None:
    source = BatchSource(shop, knowledge)
    rows = np.arange(300)
    batch = source.make(rows)
    counts = torch.tensor(batch.offsets).diff()
    plain, padded = (model_of(source, "star", "none").train() for _ in range(2))
    room = 310
    places = [torch.arange(a, b) for a, b in zip(batch.offsets, batch.offsets[1:], strict=False)]
    filled = [torch.cat([p, p[:1].expand(room - len(p))]) for p in places]
    whole, real = torch.cat(filled), torch.cat([torch.arange(room) < len(p) for p in places])
    offsets = PaddedOffsets.of([0, room, 2 * room, 3 * room], counts)
    x = torch.randn(300, 24, generator=torch.Generator().manual_seed(0)) * 3 + 5
    for _ in range(3):
        one = plain.backbone(x, batch.offsets)
        other = padded.backbone(x[whole], offsets)
        torch.testing.assert_close(other[real], one, rtol=1e-4, atol=1e-5)
    for name, kept in plain.named_buffers():
        torch.testing.assert_close(dict(padded.named_buffers())[name], kept, rtol=1e-5, atol=1e-6)
    assert torch.equal(offsets.real().bool(), real)
    assert scenario_of_rows(offsets, CPU).tolist() == [0] * room + [1] * room + [2] * room


def test_a_slice_of_one_row_is_normalised_by_the_averages(shop: PreparedData) -> None:
    source = BatchSource(shop)
    plain, padded = (model_of(source, "star", "none").train() for _ in range(2))
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(0))
    one = plain.backbone(x, (0, 4, 5, 9))
    offsets = PaddedOffsets.of([0, 4, 7, 11], torch.tensor([4, 1, 4]))
    other = padded.backbone(x[[0, 1, 2, 3, 4, 4, 4, 5, 6, 7, 8]], offsets)
    torch.testing.assert_close(other[[0, 1, 2, 3, 4, 7, 8, 9, 10]], one)
    for name, kept in plain.named_buffers():
        torch.testing.assert_close(dict(padded.named_buffers())[name], kept)


def test_batches_that_do_not_fit_are_taken_as_they_are(shop: PreparedData) -> None:
    source = BatchSource(shop)
    model = model_of(source, "shared_bottom", "none")
    columns = ResidentColumns(shop, Knowledge(), CPU)
    step = padded_step(model, BatchSource(shop, columns=columns), TRAIN)
    scenario = np.asarray(shop.scenario[: shop.split.valid])
    crowded = np.flatnonzero(scenario == scenario[0])[:250]
    lacking = np.flatnonzero(scenario != 2)[:100]
    for rows in (crowded, lacking):
        batch = step.padded(rows)
        assert isinstance(batch, Batch)
        assert step(batch) == len(rows)
    assert isinstance(step.padded(np.arange(250)), Numbers)
    visited = [batch.rows if isinstance(batch, Batch) else real_rows(batch) for batch in step.batches(0)]
    assert sorted(torch.cat(visited).tolist()) == list(range(shop.split.valid))


def real_rows(batch: Numbers) -> torch.Tensor:
    size = len(batch.shape)
    return batch.sent[:size][torch.from_numpy(batch.shape.real(batch.sent[size:].numpy()))]


@pytest.mark.parametrize(
    ("because", "device", "enhancer", "settings", "group"),
    [
        ("only a GPU", "cpu", "llm4msr", {}, ALONE),
        ("is off", "cuda", "llm4msr", {"cuda_graphs": False}, ALONE),
        ("generated_decay", "cuda", "llm4msr", {"generated_decay": 0.1}, ALONE),
        ("several processes", "cuda", "llm4msr", {}, Group(0, 2)),
        ("LLM4MSR is not replayable", "cuda", "llm4msr-full", {}, ALONE),
        ("", "cuda", "llm4msr", {}, ALONE),
    ],
)
def test_steps_are_recorded_where_nothing_speaks_against_it(
    shop: PreparedData,
    knowledge: Knowledge,
    because: str,
    device: str,
    enhancer: str,
    settings: dict[str, Any],
    group: Group,
) -> None:
    source = BatchSource(shop, knowledge, torch.device(device), ResidentColumns(shop, knowledge, CPU))
    config = TRAIN.model_copy(update=settings)
    reason = why_plain(model_of(source, "star", enhancer), source, config, group)
    assert because in reason
    assert bool(reason) == bool(because)
    mapped = BatchSource(shop, knowledge, torch.device("cuda"))
    assert "do not fit" in why_plain(model_of(mapped, "star", "llm4msr"), mapped, TRAIN)


def test_a_cpu_takes_plain_steps(shop: PreparedData) -> None:
    source = BatchSource(shop)
    model = model_of(source, "star", "none")
    assert isinstance(training_step(model, TRAIN.optimizers(model), source, TRAIN), PlainStep)


def test_a_class_says_for_itself_that_it_is_replayable() -> None:
    class Own(SharedBottom):
        """A backbone made of ours, which might do anything."""

    before = BACKBONE_TYPES.get("shared_bottom").replayable
    BACKBONE_TYPES.register("own", SharedBottomConfig)(Own)
    try:
        assert before
        assert not Own.replayable
    finally:
        del BACKBONE_TYPES._types["own"]


def test_stars_statistics_stay_in_float32(shop: PreparedData, knowledge: Knowledge) -> None:
    source = BatchSource(shop, knowledge, CPU, ResidentColumns(shop, knowledge, CPU))
    config = TRAIN.model_copy(update={"precision": "bfloat16"})
    plain, padded = (model_of(source, "star", "none") for _ in range(2))
    step = PlainStep(plain, config.optimizers(plain), source, config)
    step(next(iter(step.batches(0))))
    filled = padded_step(padded, source, config)
    filled(next(iter(filled.batches(0))))
    for name, kept in plain.named_buffers():
        torch.testing.assert_close(dict(padded.named_buffers())[name], kept, rtol=1e-4, atol=1e-6, msg=name)
