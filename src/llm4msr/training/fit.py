"""The training loop, flat: read it from top to bottom."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from llm4msr.data.prepared import PreparedData
from llm4msr.data.split import Part
from llm4msr.errors import InputError
from llm4msr.models.model import MultiScenarioModel
from llm4msr.training.batches import BatchSource
from llm4msr.training.checkpoint import Position, copy_of, load_checkpoint, save_checkpoint
from llm4msr.training.metrics import Scores, score
from llm4msr.training.parallel import ALONE, Group
from llm4msr.training.recorded import training_step
from llm4msr.training.train_config import TrainConfig

_LOOK = 20
"""Steps after which the sum of the losses is looked at, for which a GPU has to be waited for."""


@dataclass(frozen=True)
class TrainProgress:
    """Where training is: steps done and planned, the rows a second of late, the last validation's mean AUC."""

    step: int
    steps: int
    rows_per_second: float
    validation: float | None
    best: float


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

    Processes of a `group` share every batch and end with the same weights; the first one
    writes and reports.
    Where the folder has a checkpoint, training goes on from it and ends with the same numbers as if it had never been
    stopped, on a GPU up to rounding and what dropout drops. Raises `InputError` when the loss is no longer a number.
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

    while not position.done and position.epoch < config.epochs:
        began, rows, seen = time.perf_counter(), 0, 0
        step.loss_sum.zero_()
        step.padded_steps = 0
        for batch in step.batches(position.epoch, position.step):
            count = step(batch)
            position.step += 1
            rows, seen = rows + count, seen + 1
            per_epoch = config.validations_per_epoch
            validates = position.step * per_epoch // steps > (position.step - 1) * per_epoch // steps
            if validates or seen % _LOOK == 0:
                loss_so_far = float(group.sum(step.loss_sum.cpu().clone()))
                if not np.isfinite(loss_so_far):
                    raise InputError(
                        f"the loss is not a number at epoch {position.epoch + 1}, by step {position.step}; "
                        f"lower the learning rate ({config.learning_rate:g})"
                    )
            if validates:
                seconds = time.perf_counter() - began
                position.seconds += seconds
                scores = evaluate(model, data, source, "valid", group)
                position.waited += 1
                if scores.selection > position.best:
                    position.best, position.waited, best = scores.selection, 0, copy_of(model)
                    position.best_epoch = position.epoch + position.step / steps
                record = {
                    "epoch": position.epoch + 1,
                    "step": position.step,
                    "train_loss": loss_so_far / seen,
                    "rows_per_second": round(rows / seconds),
                    "selection": scores.selection,
                    "validation": scores.as_dict(names),
                }
                if source.device.type == "cuda":
                    record["replayed"] = round(step.padded_steps / seen, 3)
                if group.writes:
                    with metrics.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(record, ensure_ascii=False) + "\n")
                position.lines += 1
                position.done = position.waited >= config.patience
                done, planned = steps * position.epoch + position.step, steps * config.epochs
                if group.writes:
                    progress(TrainProgress(done, planned, rows / seconds, scores.mean_auc, position.best))
                if position.step == steps:
                    position.epoch, position.step = position.epoch + 1, 0
                if group.writes:
                    save_checkpoint(checkpoint, model, best, optimizers, position)
                began, rows, seen = time.perf_counter(), 0, 0
                step.loss_sum.zero_()
                step.padded_steps = 0
                if position.done:
                    break

    model.load_state_dict(best)
    optimizers.zero_grad()  # the gradients of a recorded step hold its memory
    return position


def predict(
    model: MultiScenarioModel, data: PreparedData, source: BatchSource, part: Part, group: Group = ALONE
) -> NDArray[np.float32]:
    """The logits of a part's rows, `(n,)`, in the order of the data; processes of a `group` share the batches."""
    first, last = data.split.range(part)
    out = torch.zeros(last - first, device=source.device)
    model.eval()
    with torch.inference_mode():
        for batch in source.part(part, share=(group.rank, group.size)):
            out[batch.rows - first] = model(batch)[0].float()
    return group.sum(out.cpu()).numpy()


def evaluate(
    model: MultiScenarioModel, data: PreparedData, source: BatchSource, part: Part, group: Group = ALONE
) -> Scores:
    """AUC and log loss of a part, overall and for each scenario."""
    return score_part(data, predict(model, data, source, part, group), part)


def score_part(data: PreparedData, logits: NDArray[np.float32], part: Part) -> Scores:
    """AUC and log loss of a part from its rows' logits; raises `InputError` where one is no number."""
    first, last = data.split.range(part)
    if not np.isfinite(logits).all():
        raise InputError("the scores are not numbers; lower the learning rate, or check the numeric fields")
    label, scenario = np.asarray(data.label[first:last]), np.asarray(data.scenario[first:last])
    return score(label, logits, scenario, data.scenario_count)


def _keep_lines(path: Path, count: int) -> None:
    """Drop metrics written after the checkpoint: those steps are done again."""
    lines = path.read_text(encoding="utf-8").split("\n")[:count] if path.exists() else []
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
