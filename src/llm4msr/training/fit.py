"""The training loop, flat: read it from top to bottom."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from llm4msr.data.prepared import PreparedData
from llm4msr.data.split import Part
from llm4msr.errors import InputError
from llm4msr.models.model import MultiScenarioModel
from llm4msr.training.batches import BatchSource
from llm4msr.training.checkpoint import Position, copy_of, load_checkpoint, save_checkpoint
from llm4msr.training.metrics import Scores, score
from llm4msr.training.objective import losses, objective
from llm4msr.training.optim import EmbeddingUpdates, Optimizers
from llm4msr.training.parallel import ALONE, Group


class TrainConfig(BaseModel):
    """How a model is trained.

    `embedding_decay` is L2 on the embedding table: sparse ids overfit within one or two epochs, so it matters more
    than most settings. `embedding_updates` says whether a step updates the rows that it looked up, or all of them
    exactly (see `Optimizers`). `weight_decay` is L2 on the other parameters, `generated_decay` on the generated
    weights. Validation runs `validations_per_epoch` times an epoch; training stops after `patience` of them without
    a better mean validation AUC over the scenarios, and the best weights are restored in any case. Up to
    `rows_together` rows that see the same user states are drawn into a batch as one: what is made of the states is
    then made less often.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=4096, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    embedding_decay: float = Field(default=1e-5, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    generated_decay: float = Field(default=0.0, ge=0)
    embedding_updates: EmbeddingUpdates = "auto"
    validations_per_epoch: int = Field(default=4, ge=1)
    patience: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    precision: Literal["float32", "bfloat16"] = "float32"
    shuffle_window: int | None = Field(default=None, ge=1)
    rows_together: int = Field(default=16, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def optimizers(self, model: MultiScenarioModel) -> Optimizers:
        """The optimizers of a model that is trained so."""
        return Optimizers(
            model,
            learning_rate=self.learning_rate,
            embedding_decay=self.embedding_decay,
            weight_decay=self.weight_decay,
            embedding_updates=self.embedding_updates,
        )

    def torch_device(self) -> torch.device:
        """The device to train on: of several GPUs this process' own, by number, since threads do not share a choice."""
        if self.device == "cpu" or (self.device == "auto" and not torch.cuda.is_available()):
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise InputError("device = 'cuda', but PyTorch finds no GPU here; take 'auto' or 'cpu'")
        return torch.device("cuda", torch.cuda.current_device())


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
    stopped. Raises `InputError` when the loss is no longer a number.
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

    while not position.done and position.epoch < config.epochs:
        began, rows, loss_sum, seen = time.perf_counter(), 0, 0.0, 0
        for batch in source.epoch(
            config.batch_size,
            config.seed,
            position.epoch,
            position.step,
            window=config.shuffle_window,
            together=config.rows_together,
            share=group.share,
        ):
            model.train()
            optimizers.zero_grad()
            counted = group.sum(torch.tensor([float(len(batch)), 0.0]))
            loss, penalty = losses(model, batch, config.precision)
            # This process's share of the mean over all rows: the shares of the group add up to it.
            loss = loss * (len(batch) / float(counted[0]))
            objective(loss, penalty, config.generated_decay / group.size).backward()
            counted[1] = float(loss.detach())
            group.sum_gradients(model, model.embedding.table.weight if optimizers.by_rows else None)
            optimizers.step()

            position.step += 1
            rows, seen, loss_sum = rows + int(counted[0]), seen + 1, loss_sum + float(group.sum(counted[1:])[0])
            if not np.isfinite(loss_sum):
                raise InputError(
                    f"the loss is not a number at epoch {position.epoch + 1}, step {position.step}; "
                    f"lower the learning rate ({config.learning_rate:g})"
                )
            per_epoch = config.validations_per_epoch
            if position.step * per_epoch // steps > (position.step - 1) * per_epoch // steps:
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
                    "train_loss": loss_sum / seen,
                    "rows_per_second": round(rows / seconds),
                    "validation": scores.as_dict(names),
                }
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
                began, rows, loss_sum, seen = time.perf_counter(), 0, 0.0, 0
                if position.done:
                    break

    model.load_state_dict(best)
    return position


def predict(
    model: MultiScenarioModel, data: PreparedData, source: BatchSource, part: Part, group: Group = ALONE
) -> NDArray[np.float32]:
    """The logits of a part's rows, `(n,)`, in the order of the data; processes of a `group` share the batches."""
    first, last = data.split.range(part)
    out = torch.zeros(last - first)
    model.eval()
    with torch.inference_mode():
        for batch in source.part(part, share=(group.rank, group.size)):
            out[batch.rows.cpu() - first] = model(batch)[0].float().cpu()
    return group.sum(out).numpy()


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
