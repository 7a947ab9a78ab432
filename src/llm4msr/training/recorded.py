"""A training step that a GPU replays.

A step of these models is some hundreds of small operations. A GPU runs them in about a millisecond, but Python takes
several times as long to launch them one by one. So they are launched once, recorded as a CUDA graph, and replayed with
the row numbers of the next batch. A recording has fixed shapes: each scenario's slice is padded with rows that have no
loss (`PaddedOffsets`). The batches are the same as those of `PlainStep`, and so is the training, up to rounding and
dropout: here each row has its own dropped numbers, in a plain step rows with the same state share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm4msr.models.batch import Batch, PaddedOffsets
from llm4msr.models.model import MultiScenarioModel
from llm4msr.training.batches import BatchSource, prefetched
from llm4msr.training.columns import ResidentColumns
from llm4msr.training.objective import losses
from llm4msr.training.optim import Optimizers
from llm4msr.training.parallel import ALONE, Group
from llm4msr.training.step import PlainStep, Step
from llm4msr.training.train_config import TrainConfig

_WARM = 3
"""Warm-up steps before the recording, in which libraries choose their algorithms."""


def training_step(
    model: MultiScenarioModel,
    optimizers: Optimizers,
    source: BatchSource,
    config: TrainConfig,
    group: Group = ALONE,
) -> Step:
    """A replayed step if the GPU holds all columns and model and settings allow it (`why_plain`); else a plain one."""
    plain = PlainStep(model, optimizers, source, config, group)
    return plain if why_plain(model, source, config, group) else RecordedStep(plain)


def why_plain(model: MultiScenarioModel, source: BatchSource, config: TrainConfig, group: Group = ALONE) -> str:
    """The reason why steps are not recorded; empty if they are."""
    if source.device.type != "cuda":
        return "only a GPU replays steps"
    if not config.cuda_graphs:
        return "cuda_graphs is off"
    if group.size > 1:
        return "several processes add up their gradients"
    if config.generated_decay:
        return "generated_decay asks for a mean over a batch's different states, whose number a recording does not know"
    if not isinstance(source.columns, ResidentColumns):
        return "the columns do not fit onto the GPU"
    for part in (model.backbone, model.enhancer):
        if not part.replays():
            return f"{type(part).__name__} is not replayable"
    return ""


@dataclass(frozen=True)
class Numbers:
    """A padded batch.

    `sent`: its row numbers `(P,)`, then the number of real rows of each scenario `(D,)`. `rows`: the sum of the latter.
    """

    sent: Tensor
    rows: int


class PaddedStep:
    """A step on batches padded to one shape. A batch that does not fit the shape runs as a plain step.

    A slice has room for the mean number of its scenario's rows in some sample batches, plus five standard deviations. A
    batch without rows of some scenario runs as a plain step: padding would give that scenario's own parameters an
    update that a plain step does not make.
    """

    def __init__(self, plain: PlainStep) -> None:
        assert isinstance(plain.source.columns, ResidentColumns)  # see `why_plain`
        self._plain, self._columns = plain, plain.source.columns
        self.loss_sum, self.padded_steps = plain.loss_sum, 0
        self._room = room_of(plain.source.counts(plain.config.drawing))
        self._offsets = [0, *np.cumsum(self._room).tolist()]
        self._scenario = np.repeat(np.arange(len(self._room)), self._room)
        self._place = np.arange(self._offsets[-1]) - np.asarray(self._offsets)[self._scenario]
        size, device = self._offsets[-1], self.loss_sum.device
        self._numbers = torch.zeros(size + len(self._room), dtype=torch.int64, device=device)
        self._rows, counts = self._numbers.split([size, len(self._room)])
        self._slices = PaddedOffsets.of(self._offsets, counts)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Numbers | Batch]:
        """An epoch's batches from step `start` on, made ahead."""
        chunks = self._plain.source.chunks(self._plain.config.drawing, epoch, start)
        return prefetched(self.padded(rows) for rows in chunks)

    def padded(self, rows: NDArray[np.int64]) -> Numbers | Batch:
        """The batch of the rows, padded; unpadded if a scenario has more rows than its slice has room for, or none."""
        rows, offsets = self._plain.source.in_slices(rows)
        counts = np.diff(offsets)
        if (counts > self._room).any() or (counts[self._room > 0] == 0).any():
            return self._plain.source.make(rows)
        real = self._place < counts[self._scenario]
        chosen = rows[offsets[self._scenario] + np.where(real, self._place, 0)]
        sent = torch.from_numpy(np.concatenate([chosen, counts]))
        return Numbers(sent.pin_memory() if self._numbers.is_cuda else sent, len(rows))

    def __call__(self, batch: Numbers | Batch) -> int:
        """Train on a batch; returns its number of rows."""
        if isinstance(batch, Batch):
            return self._plain(batch)
        if not self._plain.model.training:
            self._plain.model.train()
        self._numbers.copy_(batch.sent, non_blocking=True)
        self._play()
        self.padded_steps += 1
        return batch.rows

    def _play(self) -> None:
        self._work()

    def _work(self) -> None:
        """Train on the rows whose numbers are on the device."""
        plain = self._plain
        plain.optimizers.zero_grad()
        batch = self._columns.at(self._rows).batch(self._slices)
        loss, _ = losses(plain.model, batch, plain.config.precision)
        loss.backward()
        self.loss_sum += loss.detach()
        plain.optimizers.step()


class RecordedStep(PaddedStep):
    """A `PaddedStep` that is recorded after some steps and replayed from then on."""

    _graph: torch.cuda.CUDAGraph | None = None
    _warm = 0

    def _play(self) -> None:
        with torch.cuda.device(self._numbers.device):
            if self._graph is not None:
                self._graph.replay()
            elif self._warm < _WARM:
                self._warm += 1
                here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
                aside.wait_stream(here)
                with torch.cuda.stream(aside):
                    self._work()
                here.wait_stream(aside)
            else:
                self._graph = self._recorded()
                self._graph.replay()

    def _recorded(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self._plain.optimizers.zero_grad()
        # "thread_local": the thread that makes batches ahead may use CUDA during the recording.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._work()
        return graph


def room_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of rows in each scenario's slice, `(D,)`, from the `counts` `(n, D)` of some sample batches.

    >>> room_of(np.array([[3070, 1026, 0], [3040, 1056, 0]])).tolist()
    [3136, 1120, 0]
    """
    most = counts.mean(0) + 5 * counts.std(0) + 1
    return np.where(counts.any(0), -(-most // 8) * 8, 0).astype(np.int64)
