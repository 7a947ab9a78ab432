"""A run: one config, one folder with everything that came of it.

The folder holds `config.json`, `versions.json`, `metrics.jsonl` (a line a validation), `checkpoint.safetensors` while
training goes on, and at the end `model.safetensors` (the best weights), `knowledge.safetensors` (how vectors were
standardised and reduced), `test_logits.npy` (a score for each test row, in order) and `result.json`.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from llm4msr import __version__
from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.folders import write_text_atomically
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.sources import NO_KNOWLEDGE, Knowledge, KnowledgeConfig, Source, fingerprint, load_knowledge
from llm4msr.models.model import ModelConfig, MultiScenarioModel, build_model
from llm4msr.schema import explain_validation
from llm4msr.training.allocation import keep_freed_memory
from llm4msr.training.batches import BatchSource
from llm4msr.training.checkpoint import Position, read_tensors, write_tensors
from llm4msr.training.fit import TrainConfig, TrainProgress, evaluate, fit, predict, score_part
from llm4msr.training.metrics import Scores
from llm4msr.training.parallel import Group, joined

_FOLDERS = ("data", "knowledge_folder")


class RunConfig(BaseModel):
    """Everything that a run depends on; `knowledge_folder` is needed where the enhancer reads knowledge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path
    knowledge_folder: Path | None = None
    model: ModelConfig = ModelConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    train: TrainConfig = TrainConfig()


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `leaks` is not empty where the knowledge protocol shows training rows their labels."""

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
    """Train in `folder`, or go on where an interrupted run of the same config stopped, or give a finished one's result.

    Raises `InputError` where the folder holds a run of another config, or the data or the knowledge does not fit.
    """
    keep_freed_memory()
    with joined() as group:
        return _train(_absolute(config), folder, progress, group)


def _train(config: RunConfig, folder: Path, progress: Callable[[TrainProgress], None], group: Group) -> RunResult:
    data = PreparedData.open(config.data)
    reasoned = _open_knowledge(config, data)
    resolved = _resolved(config, data, reasoned)
    if _is_claimed(folder, resolved) and (folder / "result.json").is_file():
        return read_result(folder)
    if data.split.valid == data.split.test:
        raise InputError(
            f"{data.path}: has no validation row to choose the best weights by; prepare it with another --split"
        )
    knowledge = _knowledge(config, data, reasoned)
    source, model = _model(config, data, knowledge)
    group.wait()
    if group.writes:
        _claim(folder, resolved)
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
        "validation_auc": position.best if position.best > float("-inf") else None,
        "best_epoch": round(position.best_epoch, 3),
        "seconds": round(position.seconds, 2),
        "parameters": sum(p.numel() for p in model.parameters()),
        "leaks": knowledge.leaks,
    }
    _write_json(folder / "result.json", result)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)


def open_run(config: RunConfig) -> tuple[PreparedData, BatchSource, MultiScenarioModel]:
    """The data, the batches and the untrained model of a config."""
    data = PreparedData.open(config.data)
    source, model = _model(config, data, _knowledge(config, data, _open_knowledge(config, data)))
    return data, source, model


def resolved_config(config: RunConfig, *, places: bool = True) -> dict[str, Any]:
    """All that a run depends on: its settings and the fingerprints of data and knowledge.

    Without `places`, the names of the folders are left out: their content is known by its fingerprint.
    """
    data = PreparedData.open(config.data, check=False)
    resolved = _resolved(_absolute(config), data, _open_knowledge(config, data))
    return resolved if places else _what_matters(resolved)


def _resolved(config: RunConfig, data: PreparedData, reasoned: KnowledgeFolder | None) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "prepared": data.fingerprint,
        "knowledge": None if reasoned is None else fingerprint(reasoned, config.knowledge),
    }


def evaluate_run(folder: Path) -> Scores:
    """Score the test part anew with a run's stored weights. Raises `InputError` where anything changed since."""
    data, source, model = open_trained(folder)
    return evaluate(model, data, source, "test")


def open_trained(folder: Path) -> tuple[PreparedData, BatchSource, MultiScenarioModel]:
    """The data, the batches and the trained model of a run. Raises `InputError` where anything changed since."""
    resolved = _read_json(folder / "config.json")
    config = run_config(folder)
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder}: the run has not ended; run `llm4msr train` with the same settings to finish it")
    data, source, model = open_run(config)
    now = _resolved(config, data, _open_knowledge(config, data))
    for name in ("prepared", "knowledge"):
        if resolved.get(name) != now[name]:
            raise InputError(f"{folder}: the {name} data changed since the run was trained; train it anew")
    tensors, _ = read_tensors(folder / "model.safetensors")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{folder / 'model.safetensors'}: the weights do not fit the config: {error}") from error
    return data, source, model


def run_config(folder: Path) -> RunConfig:
    """The config of a run; raises `InputError` for a folder that is none."""
    path = folder / "config.json"
    return parse_config(_read_json(path).get("config"), str(path))


def parse_config(raw: Any, where: str) -> RunConfig:
    """Check a config; `where` names it in errors."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{where}: {explain_validation(error)}") from error


def read_result(folder: Path) -> RunResult:
    """The result of a finished run."""
    path = folder / "result.json"
    raw = _read_json(path)
    try:
        return RunResult(folder=folder, scores=Scores.from_dict(raw.pop("test")), **raw)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); train the run anew") from error


def _needs(config: RunConfig) -> frozenset[Source]:
    """Which knowledge the model reads."""
    items = {"item"} if config.model.item_start else set()
    return frozenset({*config.model.enhancer_config().needs, *items})


def _open_knowledge(config: RunConfig, data: PreparedData) -> KnowledgeFolder | None:
    needs = _needs(config)
    if not needs:
        return None
    if config.knowledge_folder is None:
        raise InputError(
            f"the enhancer {config.model.enhancer.name!r} reads {', '.join(sorted(needs))} knowledge; "
            "name the folder that `llm4msr reason` wrote"
        )
    return KnowledgeFolder.open(config.knowledge_folder, data)


def _knowledge(config: RunConfig, data: PreparedData, folder: KnowledgeFolder | None) -> Knowledge:
    if folder is None:
        return NO_KNOWLEDGE
    known = fingerprint(folder, config.knowledge)
    return _cached(data.path, data.fingerprint, folder.path, known, config.knowledge, _needs(config))


@lru_cache(maxsize=1)
def _cached(
    path: Path, fingerprint: str, folder: Path, reasoned: str, config: KnowledgeConfig, needs: frozenset[Source]
) -> Knowledge:
    """The tables of states, kept for the next run on the same data and knowledge."""
    del fingerprint, reasoned  # the content of the two folders, which the cache must tell apart
    data = PreparedData.open(path, check=False)
    return load_knowledge(KnowledgeFolder.open(folder, data), data, config, set(needs))


def _model(config: RunConfig, data: PreparedData, knowledge: Knowledge) -> tuple[BatchSource, MultiScenarioModel]:
    device = config.train.torch_device()
    source = BatchSource(data, knowledge, device)
    model = build_model(config.model, source.layout, data.scenario_count, source.widths, config.train.seed)
    if config.model.item_start:
        _start_from_items(model, data, knowledge)
    return source, model.to(device)


def _start_from_items(model: MultiScenarioModel, data: PreparedData, knowledge: Knowledge) -> None:
    """Start the rows of the item's own field from the items' knowledge vectors, where those are known."""
    assert knowledge.item is not None
    train = slice(0, data.split.valid)
    for place, spec in enumerate(data.fields_of("categorical")):
        if spec.side == "item" and spec.source == data.schema.columns.item:
            ids, first = np.unique(np.asarray(data.field(spec.name)[train]), return_index=True)
            state = knowledge.item.index[train][first]
            usable = (ids > 0) & (state > 0)
            vectors = torch.from_numpy(knowledge.item.vectors[state[usable]])
            model.embedding.start_from(place, torch.from_numpy(ids[usable]), vectors)


def _absolute(config: RunConfig) -> RunConfig:
    """The config with absolute paths, so that the run can be evaluated from anywhere."""
    folder = config.knowledge_folder
    return config.model_copy(
        update={"data": config.data.resolve(), "knowledge_folder": None if folder is None else folder.resolve()}
    )


def _is_claimed(folder: Path, resolved: dict[str, Any]) -> bool:
    """Whether the folder is this run's already. Raises `InputError` where it is another's, or no run at all."""
    if (folder / "config.json").is_file():
        if _what_matters(_read_json(folder / "config.json")) != _what_matters(resolved):
            raise InputError(f"{folder}: holds a run with other settings or data; choose another folder or remove it")
        return True
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and not a run; choose another folder")
    return False


def _what_matters(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved config without the folders' names: their content is known by its fingerprint."""
    config = resolved.get("config")
    rest = {k: v for k, v in config.items() if k not in _FOLDERS} if isinstance(config, dict) else config
    return {**resolved, "config": rest}


def _claim(folder: Path, resolved: dict[str, Any]) -> None:
    """Make the folder this run's; by now everything that can be wrong with the settings has been found."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", resolved)
    packages = ("torch", "numpy", "polars", "scikit-learn", "safetensors", "transformers")
    versions = {"llm4msr": __version__, "python": platform.python_version()} | {p: version(p) for p in packages}
    _write_json(folder / "versions.json", versions)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a run's JSON ({error}); is {path.parent} a run?") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is damaged (it holds no object); train the run anew")
    return content
