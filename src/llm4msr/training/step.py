"""One training step: its interface, and the plain step; `recorded` has a step that a GPU replays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from llm4msr.models.batch import Batch
from llm4msr.models.model import MultiScenarioModel
from llm4msr.training.batches import BatchSource
from llm4msr.training.objective import losses, objective
from llm4msr.training.optim import Optimizers
from llm4msr.training.parallel import ALONE, Group
from llm4msr.training.train_config import TrainConfig


class Step(Protocol):
    """Trains on one batch after another.

    `loss_sum` sums this process's part of each batch's mean loss. `padded_steps` counts the batches that were padded to
    a shape that a GPU replays.
    """

    loss_sum: Tensor
    padded_steps: int

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """An epoch's batches from step `start` on, in the form that the step takes, made ahead."""
        ...

    def __call__(self, batch: Any) -> int:
        """Train on a batch; returns its number of rows, over all processes."""
        ...


class PlainStep:
    """A step that runs operation by operation."""

    def __init__(
        self,
        model: MultiScenarioModel,
        optimizers: Optimizers,
        source: BatchSource,
        config: TrainConfig,
        group: Group = ALONE,
    ) -> None:
        self.model, self.optimizers, self.source = model, optimizers, source
        self.config, self._group = config, group
        self.loss_sum, self.padded_steps = torch.zeros((), dtype=torch.float64, device=source.device), 0

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """An epoch's batches from step `start` on, made ahead."""
        return self.source.epoch(self.config.drawing, epoch, start, share=self._group.share)

    def __call__(self, batch: Batch) -> int:
        """Train on a batch; returns its number of rows, over all processes."""
        model, group = self.model, self._group
        model.train()
        self.optimizers.zero_grad()
        count = int(group.sum(torch.tensor(len(batch))))
        loss, penalty = losses(model, batch, self.config.precision)
        # This process's part of the mean over all rows: the sum over the group is the mean.
        loss = loss * (len(batch) / count)
        objective(loss, penalty, self.config.generated_decay / group.size).backward()
        self.loss_sum += loss.detach()
        group.sum_gradients(model, model.embedding.table.weight if self.optimizers.by_rows else None)
        self.optimizers.step()
        return count
