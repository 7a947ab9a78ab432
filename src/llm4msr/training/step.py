"""One training step, as `fit`, the paper's Table 3 and the estimates take it."""

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

    `loss_sum` is the sum of their losses, of this process's share of the rows; `padded_steps` counts the batches that
    were given the one shape that a GPU replays.
    """

    loss_sum: Tensor
    padded_steps: int

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """An epoch's batches from step `start` on, as the step wants them, made ahead."""
        ...

    def __call__(self, batch: Any) -> int:
        """Train on a batch; gives its rows, in all processes."""
        ...


class PlainStep:
    """A step operation by operation."""

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
        c = self.config
        return self.source.epoch(
            c.batch_size,
            c.seed,
            epoch,
            start,
            window=c.shuffle_window,
            together=c.rows_together,
            share=self._group.share,
        )

    def __call__(self, batch: Batch) -> int:
        """Train on a batch; gives its rows, in all processes."""
        model, group = self.model, self._group
        model.train()
        self.optimizers.zero_grad()
        count = int(group.sum(torch.tensor(len(batch))))
        loss, penalty = losses(model, batch, self.config.precision)
        # This process's share of the mean over all rows: the shares of the group add up to it.
        loss = loss * (len(batch) / count)
        objective(loss, penalty, self.config.generated_decay / group.size).backward()
        self.loss_sum += loss.detach()
        group.sum_gradients(model, model.embedding.table.weight if self.optimizers.by_rows else None)
        self.optimizers.step()
        return count
