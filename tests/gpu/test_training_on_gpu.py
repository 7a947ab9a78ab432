"""Batches, the loop, runs and bundles on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.tables import load_knowledge
from llm4msr.training.batches import BatchSource
from llm4msr.training.columns import MappedColumns, ResidentColumns, columns_of
from llm4msr.training.config import RunConfig
from llm4msr.training.evaluation import predict
from llm4msr.training.fit import TrainProgress
from llm4msr.training.parallel import Group
from llm4msr.training.run import evaluate_run, open_trained, train_run
from tests.gpu.conftest import GPU


def settings(shop: PreparedData, knowledge: KnowledgeFolder, **train: Any) -> dict[str, Any]:
    return {
        "data": str(shop.path),
        "knowledge_folder": str(knowledge.path),
        "model": {
            "embedding_dim": 4,
            "backbone": {"name": "star", "settings": {"hidden": [8]}},
            "enhancer": {"name": "llm4msr"},
        },
        "knowledge": {"dimensions": 6},
        "train": {"epochs": 2, "batch_size": 64, "validations_per_epoch": 2, "learning_rate": 0.01, **train},
    }


def test_columns_stay_on_the_gpu_where_they_fit(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    knowledge = load_knowledge(shop_knowledge, shop, KnowledgeConfig(dimensions=4), {"own", "others", "item"})
    rows = np.random.default_rng(0).permutation(shop.rows)[:500]
    here = BatchSource(shop, knowledge).make(rows)
    for free, kind in ((2**40, ResidentColumns), (1000, MappedColumns)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        source = BatchSource(shop, knowledge, GPU, columns_of(shop, knowledge, GPU))
        there = source.make(rows)
        assert isinstance(source.columns, kind)
        for name in ("categorical", "multi", "numeric", "label", "rows", "item"):
            value = getattr(there, name)
            assert value.is_cuda
            torch.testing.assert_close(value.cpu(), getattr(here, name), rtol=0, atol=0, equal_nan=True)
        assert there.users is not None
        assert here.users is not None
        torch.testing.assert_close(there.users.vectors.cpu(), here.users.vectors, rtol=0, atol=0)
        if here.users.inverse is not None and there.users.inverse is not None:
            assert torch.equal(there.users.inverse.cpu(), here.users.inverse)
        assert (there.users.inverse is None) == (here.users.inverse is None)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("updates", ["rows", "exact"])
def test_a_run_learns_what_a_cpu_learns(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, tmp_path: Path, precision: str, updates: str
) -> None:
    scores = {}
    for device in ("cpu", "cuda"):
        raw = settings(shop, shop_knowledge, device=device, precision=precision, embedding_updates=updates)
        scores[device] = train_run(RunConfig.checked(raw, "test"), tmp_path / device).scores.overall
    assert scores["cuda"].auc == pytest.approx(scores["cpu"].auc, abs=0.02)
    assert scores["cuda"].log_loss == pytest.approx(scores["cpu"].log_loss, abs=0.02)
    again = evaluate_run(tmp_path / "cuda")
    assert again.overall.auc == pytest.approx(scores["cuda"].auc, abs=1e-6)


def test_a_run_of_a_gpu_is_evaluated_on_a_cpu(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, tmp_path: Path
) -> None:
    train_run(RunConfig.checked(settings(shop, shop_knowledge, device="cuda"), "test"), tmp_path / "run")
    there = np.load(tmp_path / "run" / "test_logits.npy")
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    recorded["config"]["train"]["device"] = "cpu"
    (tmp_path / "run" / "config.json").write_text(json.dumps(recorded))
    data, source, model = open_trained(tmp_path / "run")
    assert source.device.type == "cpu"
    np.testing.assert_allclose(predict(model, data, source, "test"), there, rtol=1e-4, atol=1e-4)


class StopHereError(Exception):
    """Ends a training from outside."""


def test_a_stopped_training_goes_on_to_nearly_the_same_weights(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, tmp_path: Path
) -> None:
    config = RunConfig.checked(settings(shop, shop_knowledge, device="cuda", embedding_updates="rows"), "test")
    straight = train_run(config, tmp_path / "straight").scores.overall
    calls = 0

    def stop(progress: TrainProgress) -> None:
        nonlocal calls
        del progress
        calls += 1
        if calls == 2:
            raise StopHereError

    with pytest.raises(StopHereError):
        train_run(config, tmp_path / "stopped", stop)
    resumed = train_run(config, tmp_path / "stopped").scores.overall
    assert resumed.log_loss == pytest.approx(straight.log_loss, abs=1e-3)


def test_gradients_go_through_nccl_and_counts_through_gloo(tmp_path: Path) -> None:
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        table = nn.Embedding(10, 3, sparse=True, device=GPU)
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).to(GPU)
        model[0](table(torch.tensor([1, 4, 1], device=GPU))).sum().backward()
        expected = [p.grad.clone() for p in model[0].parameters() if p.grad is not None]
        pair = Group(0, 2)  # since there is one process, each sum is this process's own
        pair.sum_gradients(model, None)
        summed = [p.grad for p in model[0].parameters() if p.grad is not None]
        assert len(summed) == 2
        assert all(torch.equal(one, other) for one, other in zip(summed, expected, strict=True))
        assert model[1].weight.grad is None
        assert pair.sum(torch.tensor(3)) == 3
        assert pair.sum(torch.tensor([2.0], device=GPU)).item() == 2.0
        own = table.weight.grad
        assert own is not None
        assert torch.equal(Group(0, 1)._gathered(table.weight).to_dense(), own.to_dense())
    finally:
        dist.destroy_process_group()
