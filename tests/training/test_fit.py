"""The loop: it learns, it can be killed anywhere, and it ends with the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.errors import InputError
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.states import Source
from llm4msr.knowledge.tables import load_knowledge
from llm4msr.models.model import ModelConfig, MultiScenarioModel, PartChoice, build_model
from llm4msr.schema import Schema
from llm4msr.training.batches import BatchSource
from llm4msr.training.checkpoint import Position
from llm4msr.training.evaluation import evaluate
from llm4msr.training.fit import TrainProgress, fit
from llm4msr.training.metrics import Score, Scores
from llm4msr.training.optim import EmbeddingUpdates, Optimizers
from llm4msr.training.train_config import TrainConfig
from tests.conftest import shop_frames

SMALL = {"hidden": [8, 4]}
CONFIG = TrainConfig(epochs=3, batch_size=64, learning_rate=0.01, patience=50)


class StopHereError(Exception):
    """Ends a training from outside."""


def _model(source: BatchSource, *, dropout: float = 0.0) -> MultiScenarioModel:
    config = ModelConfig(
        embedding_dim=4,
        backbone=PartChoice(name="shared_bottom", settings={**SMALL, "dropout": dropout}),
    )
    return build_model(config, source.layout, 3, source.widths, seed=0)


def test_training_learns_what_is_there_to_learn(shop_schema: Schema, tmp_path: Path) -> None:
    data = prepare(from_frames(shop_schema, **shop_frames(rows=8000, users=12)), tmp_path / "data")
    source = BatchSource(data)
    model = _model(source)
    assert (evaluate(model, data, source, "test").overall.auc or 1.0) < 0.6
    fit(model, data, source, TrainConfig(epochs=8, batch_size=64, learning_rate=0.01), tmp_path)
    assert (evaluate(model, data, source, "test").overall.auc or 0.0) > 0.75


@pytest.mark.parametrize("updates", ["rows", "exact"])
@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_a_stopped_training_ends_bit_identical(
    shop: PreparedData, tmp_path: Path, stop_at: int, updates: EmbeddingUpdates
) -> None:
    source = BatchSource(shop)
    config = CONFIG.model_copy(update={"embedding_updates": updates})
    straight = _model(source, dropout=0.2)
    (tmp_path / "straight").mkdir()
    expected = fit(straight, shop, source, config, tmp_path / "straight")

    (tmp_path / "stopped").mkdir()
    calls = 0

    def stop(progress: TrainProgress) -> None:
        nonlocal calls
        del progress
        calls += 1
        if calls == stop_at:
            raise StopHereError

    with pytest.raises(StopHereError):
        fit(_model(source, dropout=0.2), shop, source, config, tmp_path / "stopped", stop)
    resumed = _model(source, dropout=0.2)
    found = fit(resumed, shop, source, config, tmp_path / "stopped")

    assert found == expected
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    strip = [
        [{k: v for k, v in json.loads(line).items() if k != "rows_per_second"} for line in f.read_text().splitlines()]
        for f in (tmp_path / "straight" / "metrics.jsonl", tmp_path / "stopped" / "metrics.jsonl")
    ]
    assert strip[0] == strip[1]


def test_a_killed_training_process_ends_bit_identical(shop: PreparedData, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            import torch
            from llm4msr.training.config import RunConfig
            from llm4msr.training.run import train_run
            torch.set_num_threads(1)
            raw = {"data": sys.argv[1], "model": {"embedding_dim": 4, "backbone": {"name": "star"}},
                   "train": {"epochs": 8, "batch_size": 32, "patience": 100, "seed": 5}}
            train_run(RunConfig.model_validate(raw), Path(sys.argv[2]))
            """
        )
    )
    command = [sys.executable, str(script), str(shop.path)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, timeout=120)

    process = subprocess.Popen([*command, str(tmp_path / "killed")])
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= 7):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "result.json").exists()

    subprocess.run([*command, str(tmp_path / "killed")], check=True, timeout=120)
    whole, killed = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "killed"))
    assert whole == killed
    results = [json.loads((tmp_path / n / "result.json").read_text())["test"] for n in ("whole", "killed")]
    assert results[0] == results[1]


def test_the_best_weights_are_restored_though_early_stopping_never_fired(shop: PreparedData, tmp_path: Path) -> None:
    source = BatchSource(shop)
    model = _model(source)
    position = fit(
        model, shop, source, TrainConfig(epochs=15, batch_size=64, learning_rate=0.05, patience=99), tmp_path
    )
    assert not position.done
    assert position.best_epoch < 15  # this learning rate overfits
    assert evaluate(model, shop, source, "valid").selection == position.best


def test_early_stopping_waits_for_its_patience(shop_schema: Schema, tmp_path: Path) -> None:
    large = prepare(from_frames(shop_schema, **shop_frames(rows=9000)), tmp_path / "data")
    source = BatchSource(large)
    config = TrainConfig(epochs=50, batch_size=400, learning_rate=0.05, patience=3, validations_per_epoch=1)
    position = fit(_model(source), large, source, config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = max(range(len(lines)), key=lambda i: lines[i]["selection"])
    assert position.done
    assert len(lines) == best + 1 + max(3, -(-100 // source.steps("train", 400)))


def test_few_steps_between_validations_do_not_stop_a_training_early() -> None:
    position, steps = Position(), 12
    values = iter([0.53, *[0.5] * 35])  # a lucky first value
    while not position.done:
        position.step += 3
        position.validated(of_auc(next(values)), steps, patience=4)
    assert position.best_step == 3
    assert position.epoch * steps + position.step == 105  # not 3 + 4 * 3
    many = Position()
    while not many.done:
        many.step += 50
        many.validated(of_auc(0.6), 200, patience=4)
    assert many.epoch * 200 + many.step == 250


def test_a_training_is_not_stopped_while_it_is_no_better_than_chance() -> None:
    position = Position()
    for auc in [0.507, *[0.504] * 20, 0.55, *[0.54] * 3]:
        position.step += 100
        assert not position.done
        position.validated(of_auc(auc), 100, patience=4)
    assert position.best == 0.55
    position.step += 100
    position.validated(of_auc(0.54), 100, patience=4)
    assert position.done


def of_auc(auc: float) -> Scores:
    """The scores of two scenarios of 6,000 rows."""
    part = Score(rows=6000, positive=2000, auc=auc, log_loss=0.6)
    return Scores(part, (part, part))


@pytest.mark.parametrize("batch_size", [64, 90, 137, 400])
def test_an_epoch_has_the_number_of_validations_that_was_asked_for(
    shop: PreparedData, tmp_path: Path, batch_size: int
) -> None:
    source = BatchSource(shop)
    config = TrainConfig(epochs=2, batch_size=batch_size, patience=99, validations_per_epoch=3)
    fit(_model(source), shop, source, config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 1, 1, 2, 2, 2]
    assert lines[2]["step"] == lines[5]["step"] == source.steps("train", batch_size)


def test_a_stopped_training_with_knowledge_ends_bit_identical(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, tmp_path: Path
) -> None:
    needs: set[Source] = {"prompted", "own", "others", "item", "scenario"}
    source = BatchSource(shop, load_knowledge(shop_knowledge, shop, KnowledgeConfig(dimensions=6), needs))
    enhancer = PartChoice(name="llm4msr", settings={"source": "both", "match": True, "candidate": True})
    config = ModelConfig(embedding_dim=4, enhancer=enhancer)
    ended = []
    for stop in (False, True):
        folder = tmp_path / str(stop)
        folder.mkdir()
        if stop:
            with pytest.raises(StopHereError):
                fit(build_model(config, source.layout, 3, source.widths, 0), shop, source, CONFIG, folder, _stop)
        model = build_model(config, source.layout, 3, source.widths, 0)
        fit(model, shop, source, CONFIG, folder)
        ended.append(model.state_dict())
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])


def _stop(progress: TrainProgress) -> None:
    if progress.step > 20:
        raise StopHereError


def test_a_seed_repeats_a_training(shop: PreparedData, tmp_path: Path) -> None:
    source = BatchSource(shop)
    models = [_model(source), _model(source)]
    for place, model in enumerate(models):
        (tmp_path / str(place)).mkdir()
        fit(model, shop, source, CONFIG, tmp_path / str(place))
    one, other = (m.state_dict() for m in models)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_loss_that_is_not_a_number_is_an_error_that_says_what_to_do(shop: PreparedData, tmp_path: Path) -> None:
    source = BatchSource(shop)
    model = _model(source)
    with torch.no_grad():
        model.embedding.table.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"not a number at epoch 1, by step \d+; lower the learning rate"):
        fit(model, shop, source, CONFIG, tmp_path)


@pytest.mark.parametrize("updates", ["rows", "exact"])
def test_embedding_decay_shrinks_embeddings_and_nothing_else(shop: PreparedData, updates: EmbeddingUpdates) -> None:
    source = BatchSource(shop)
    model = _model(source)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = Optimizers(model, learning_rate=1e-3, embedding_decay=1e3, weight_decay=0.0, embedding_updates=updates)
    batch = source.make(torch.arange(200).numpy())
    optimizers.zero_grad()
    (model(batch)[0].sum() * 0).backward()
    optimizers.step()
    table = model.embedding.table.weight.detach()
    used = torch.unique(batch.categorical + model.embedding.offsets[:4])
    assert bool((table[used].abs() < before["embedding.table.weight"][used].abs()).float().mean() > 0.9)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n != "embedding.table.weight")


def test_both_kinds_of_updates_agree_on_a_first_step(shop: PreparedData) -> None:
    source = BatchSource(shop)
    batch = source.make(torch.arange(300).numpy())
    tables = []
    kinds: list[EmbeddingUpdates] = ["rows", "exact"]
    for updates in kinds:
        model = _model(source)
        optimizers = Optimizers(
            model, learning_rate=1e-2, embedding_decay=0.0, weight_decay=0.0, embedding_updates=updates
        )
        model(batch)[0].sum().backward()
        optimizers.step()
        tables.append(model.embedding.table.weight.detach())
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-4, atol=1e-6)


def test_large_tables_are_updated_by_rows(shop: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(BatchSource(shop))

    def optimizers() -> Optimizers:
        return Optimizers(model, learning_rate=1e-3, embedding_decay=0.0, weight_decay=0.0)

    assert not optimizers().by_rows
    monkeypatch.setattr("llm4msr.training.optim._LARGE", model.embedding.table.weight.numel() - 1)
    assert optimizers().by_rows
