"""A run: one config, and one folder with everything that it produces.

The folder holds `config.json`, `versions.json`, `metrics.jsonl` (one line for each validation) and, during training,
`checkpoint.safetensors`. At the end it holds `model.safetensors` (the best weights), `knowledge.safetensors` (how
vectors were standardised and reduced), `test_logits.npy` (the logit of each test row, in order) and `result.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from llm4msr.allocation import keep_freed_memory
from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.folders import sole_writer, write_json
from llm4msr.knowledge.tables import Knowledge
from llm4msr.models.model import MultiScenarioModel
from llm4msr.training.batches import BatchSource
from llm4msr.training.checkpoint import Position, read_tensors, write_tensors
from llm4msr.training.config import RunConfig
from llm4msr.training.evaluation import evaluate, predict, score_part
from llm4msr.training.fit import TrainProgress, fit
from llm4msr.training.identity import claim, is_claimed, read_json, resolved, run_config
from llm4msr.training.metrics import Scores
from llm4msr.training.opening import build, open_knowledge, open_run, read_knowledge
from llm4msr.training.parallel import Group, joined


@dataclass(frozen=True)
class RunResult:
    """The result of a run. `leaks` is not empty if the knowledge protocol shows rows their own labels."""

    folder: Path
    scores: Scores
    validation_auc: float | None
    best_epoch: float
    seconds: float
    parameters: int
    leaks: str


def train_run(
    config: RunConfig, folder: Path, progress: Callable[[TrainProgress], None] = lambda progress: None
) -> RunResult:
    """Train in `folder`, resume an interrupted run of the same config, or return the result of a finished one.

    Raises `InputError` if the folder holds a run of another config, if another process trains in it, or if data or
    knowledge do not fit.
    """
    keep_freed_memory()
    with joined(config.train.device) as group:
        return _train(config.absolute(), folder, progress, group)


def _train(config: RunConfig, folder: Path, progress: Callable[[TrainProgress], None], group: Group) -> RunResult:
    config.model.backbone_config()  # report wrong settings before anything is read
    data = PreparedData.open(config.data)
    reasoned = open_knowledge(config, data)
    run = resolved(config, data, reasoned)
    if is_claimed(folder, run) and (folder / "result.json").is_file():
        return read_result(folder)
    if data.split.valid == data.split.test:
        raise InputError(
            f"{data.path}: has no validation row to choose the best weights by; prepare it with another --split"
        )
    knowledge = read_knowledge(config, data, reasoned)
    source, model = build(config, data, knowledge, trains=True)
    group.wait()
    if group.writes:
        folder.mkdir(parents=True, exist_ok=True)
    group.wait()
    if not folder.is_dir():
        raise InputError(f"{folder}: is not seen by all processes; name a folder that all machines share")
    with sole_writer(folder) if group.writes else nullcontext():
        if group.writes:
            is_claimed(folder, run)  # again, since another process may have begun a run here meanwhile
            claim(folder, run)
        position = fit(model, data, source, config.train, folder, progress, group)
        logits = predict(model, data, source, "test", group)
        if group.writes:
            _write_result(folder, data, knowledge, model, position, logits)
    group.wait()
    return read_result(folder)


def _write_result(
    folder: Path,
    data: PreparedData,
    knowledge: Knowledge,
    model: MultiScenarioModel,
    position: Position,
    logits: NDArray[np.float32],
) -> None:
    scores = score_part(data, logits, "test")
    np.save(folder / "test_logits.npy", logits)
    write_tensors(folder / "model.safetensors", model.state_dict())
    reductions = {
        f"{level}/{name}": torch.from_numpy(array)
        for level, reduction in knowledge.reductions.items()
        for name, array in vars(reduction).items()
    }
    write_tensors(folder / "knowledge.safetensors", reductions)
    result = {
        "test": scores.as_dict([s.value for s in data.schema.scenarios]),
        "validation_auc": position.best if position.best >= 0 else None,  # below 0: minus a log loss, not an AUC
        "best_epoch": round(position.best_epoch, 3),
        "seconds": round(position.seconds, 2),
        "parameters": sum(p.numel() for p in model.parameters()),
        "leaks": knowledge.leaks,
    }
    write_json(folder / "result.json", result)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)


def evaluate_run(folder: Path, config: RunConfig | None = None) -> Scores:
    """Score the test part again with a run's stored weights; see `open_trained`."""
    data, source, model = open_trained(folder, config)
    return evaluate(model, data, source, "test")


def open_trained(folder: Path, config: RunConfig | None = None) -> tuple[PreparedData, BatchSource, MultiScenarioModel]:
    """The data, the batches and the trained model of a run. Raises `InputError` if data or knowledge changed since.

    Give a `config` if data or knowledge were moved since the run (see `run_config`).
    """
    recorded = read_json(folder / "config.json")
    config = run_config(folder) if config is None else config
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder}: the run has not ended; run `llm4msr train` with the same settings to finish it")
    data, source, model = open_run(config)
    now = resolved(config, data, open_knowledge(config, data))
    for name in ("prepared", "knowledge"):
        if recorded.get(name) != now[name]:
            raise InputError(f"{folder}: the {name} data changed since the run was trained; train it anew")
    tensors, _ = read_tensors(folder / "model.safetensors")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{folder / 'model.safetensors'}: the weights do not fit the config: {error}") from error
    return data, source, model


def validation_losses(folder: Path) -> list[float]:
    """The log loss of each validation of a run, in order."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = [json.loads(line)["validation"]["overall"]["log_loss"] for line in lines]
    return [loss for loss in found if loss is not None]


def read_result(folder: Path) -> RunResult:
    """The result of a finished run."""
    path = folder / "result.json"
    raw = read_json(path)
    try:
        return RunResult(folder=folder, scores=Scores.from_dict(raw.pop("test")), **raw)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); train the run anew") from error
