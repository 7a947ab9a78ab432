"""The training loop: train up to the next validation, validate, write a checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.folders import write_text_atomically
from llm4msr.models.model import MultiScenarioModel
from llm4msr.training.batches import BatchSource
from llm4msr.training.checkpoint import Position, copy_of, load_checkpoint, save_checkpoint
from llm4msr.training.evaluation import evaluate
from llm4msr.training.metrics import Scores
from llm4msr.training.parallel import ALONE, Group
from llm4msr.training.recorded import training_step
from llm4msr.training.step import Step
from llm4msr.training.train_config import TrainConfig
from llm4msr.training.unknown import UnknownValues

_LOOK = 20
"""The loss is checked after every so many steps; each check waits for the GPU."""


@dataclass(frozen=True)
class TrainProgress:
    """Steps done and planned, recent rows a second, the last validation's mean AUC, and the best selection score."""

    step: int
    steps: int
    rows_per_second: float
    validation: float | None
    best: float


@dataclass(frozen=True)
class Stretch:
    """The training since the last validation, as recorded in a line of `metrics.jsonl`.

    `loss` is the mean over the steps, `replayed` the share of padded steps, which a GPU replays after a warm-up.
    """

    epoch: int
    step: int
    loss: float
    rows_per_second: float
    replayed: float

    def line(self, scores: Scores, names: list[str], device: torch.device) -> str:
        """The line, with the scores of the validation that followed; `names` are the scenarios' names."""
        record: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "train_loss": self.loss,
            "rows_per_second": round(self.rows_per_second),
            "selection": scores.selection,
            "validation": scores.as_dict(names),
        }
        if device.type == "cuda":
            record["replayed"] = round(self.replayed, 3)
        return json.dumps(record, ensure_ascii=False)


def fit(
    model: MultiScenarioModel,
    data: PreparedData,
    source: BatchSource,
    config: TrainConfig,
    folder: Path,
    progress: Callable[[TrainProgress], None] = lambda progress: None,
    group: Group = ALONE,
) -> Position:
    """Train, writing `metrics.jsonl` and `checkpoint.safetensors` into `folder`, and leave the best weights in `model`.

    Processes of a `group` divide every batch and end with the same weights; the first one writes and reports.
    If the folder has a checkpoint, training continues from it. The result is the same as without the interruption; on a
    GPU, rounding and the values that dropout drops may differ. Raises `InputError` if the loss is not a finite number.
    """
    torch.manual_seed(config.seed)
    optimizers = config.optimizers(model)
    checkpoint, metrics = folder / "checkpoint.safetensors", folder / "metrics.jsonl"
    position, best = Position(), copy_of(model)
    if checkpoint.exists():
        position, best = load_checkpoint(checkpoint, model, optimizers)
    group.wait()
    if group.writes:
        _keep_lines(metrics, position.lines)
    steps = source.steps("train", config.batch_size)
    names = [s.value for s in data.schema.scenarios]
    step = training_step(model, optimizers, source, config, group)

    unknown = UnknownValues(data, model.embedding)
    for stretch in _stretches(step, position, steps, config, group):
        unknown.give(model.embedding)
        scores = evaluate(model, data, source, "valid", group)
        if position.validated(scores, steps, config.patience):
            best = copy_of(model)
        if group.writes:
            with metrics.open("a", encoding="utf-8") as file:
                file.write(stretch.line(scores, names, source.device) + "\n")
            done, planned = steps * stretch.epoch + stretch.step, steps * config.epochs
            progress(TrainProgress(done, planned, stretch.rows_per_second, scores.mean_auc, position.best))
            save_checkpoint(checkpoint, model, best, optimizers, position)

    model.load_state_dict(best)
    optimizers.zero_grad()  # the gradients of a recorded step keep its memory allocated
    return position


def _stretches(step: Step, position: Position, steps: int, config: TrainConfig, group: Group) -> Iterator[Stretch]:
    """Train from `position` on until training is done, and yield a `Stretch` whenever a validation is due.

    Advances `position`; the caller records the validation in it. Raises `InputError` if the loss is not finite.
    """
    while not position.done and position.epoch < config.epochs:
        began, rows, seen = _afresh(step)
        for batch in step.batches(position.epoch, position.step):
            rows, seen = rows + step(batch), seen + 1
            position.step += 1
            validates = _validations(position.step, steps, config) > _validations(position.step - 1, steps, config)
            if not validates and seen % _LOOK:
                continue
            loss = float(group.sum(step.loss_sum.cpu().clone()))
            if not np.isfinite(loss):
                raise InputError(
                    f"the loss is not a number at epoch {position.epoch + 1}, by step {position.step}; "
                    f"lower the learning rate ({config.learning_rate:g})"
                )
            if validates:
                seconds = time.perf_counter() - began
                position.seconds += seconds
                yield Stretch(position.epoch, position.step, loss / seen, rows / seconds, step.padded_steps / seen)
                if position.done:
                    return
                began, rows, seen = _afresh(step)


def _afresh(step: Step) -> tuple[float, int, int]:
    """Reset the step's counters; returns the current time, 0 rows and 0 steps."""
    step.loss_sum.zero_()
    step.padded_steps = 0
    return time.perf_counter(), 0, 0


def _validations(done: int, steps: int, config: TrainConfig) -> int:
    """How many validations are due by step `done` of an epoch of `steps` steps. One is due after the last step."""
    return done * config.validations_per_epoch // steps


def _keep_lines(path: Path, count: int) -> None:
    """Drop metrics written after the checkpoint: those steps are repeated."""
    lines = path.read_text(encoding="utf-8").split("\n")[:count] if path.exists() else []
    write_text_atomically(path, "".join(f"{line}\n" for line in lines))
