"""Several processes that train together, against one that trains alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.models.model import ModelConfig, PartChoice, build_model
from llm4msr.training.batches import BatchSource
from llm4msr.training.checkpoint import read_tensors, write_tensors
from llm4msr.training.order import Drawing
from llm4msr.training.parallel import joined

SETTINGS = """
[model]
embedding_dim = 4
[model.backbone]
name = "shared_bottom"
settings = { hidden = [8, 4] }
[model.enhancer]
name = "llm4msr"
[knowledge]
dimensions = 4
[train]
epochs = 1
validations_per_epoch = 1
batch_size = 96
learning_rate = 0.003
embedding_decay = 1e-3
embedding_updates = "rows"
device = "cpu"
"""


def train(out: Path, settings: Path, *options: str, processes: int = 1) -> str:
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [*start, "llm4msr", "train", str(settings), "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_end_where_one_does(shop: PreparedData, shop_knowledge: KnowledgeFolder, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(SETTINGS)
    options = ("--data", str(shop.path), "--knowledge", str(shop_knowledge.path), "--set", "train.batch_size=137")
    train(tmp_path / "one", settings, *options)
    said = train(tmp_path / "two", settings, *options, processes=2)
    assert said.count("everything lies in") == 1  # the first process speaks for both
    (one, _), (two, _) = (read_tensors(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        difference = float((two[name] - one[name]).abs().max())
        assert difference < 1e-5 + 1e-4 * float(one[name].abs().max()), name
    scores = [json.loads((tmp_path / name / "result.json").read_text())["test"]["mean_auc"] for name in ("one", "two")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    lines = [len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) for name in ("one", "two")]
    assert lines[0] == lines[1]


def gradients(rank: int, size: int, port: int, data: Path, out: Path) -> None:
    """What one step leaves in the gradients, and in STAR's statistics, of a process of `size`; the first one writes."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined("cpu") as group:
        source = BatchSource(PreparedData.open(data, check=False))
        config = ModelConfig(
            embedding_dim=4,
            backbone=PartChoice(name="star", settings={"hidden": [8, 4]}),
            enhancer=PartChoice(name="epnet"),
        )
        model = build_model(config, source.layout, 3, source.widths, seed=0).train()
        (batch, *_) = source.epoch(Drawing(201), 0, share=group.share)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch)[0], batch.label)
        (loss * (len(batch) / 201)).backward()
        group.sum_gradients(model, None)
        if group.writes:
            found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            write_tensors(out, found | dict(model.named_buffers()))


def test_stars_statistics_are_those_of_all_processes(shop: PreparedData, tmp_path: Path) -> None:
    gradients(0, 1, 0, shop.path, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("spawn")
    both = [context.Process(target=gradients, args=(n, 2, port, shop.path, tmp_path / "two")) for n in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    (one, _), (two, _) = (read_tensors(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        scale = float(one[name].abs().max())
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5 * scale)
