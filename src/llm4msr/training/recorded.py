"""A training step that a GPU replays.

A step of these models is some hundreds of small operations. A GPU does them in about a millisecond, and Python takes
several times as long to ask for them one by one. So they are asked for once, recorded as a CUDA graph, and replayed
with the numbers of the next batch's rows. A recording has fixed shapes: each scenario's slice is filled up with rows
that have no loss (`PaddedOffsets`). The batches are those of `PlainStep`, and what is learned from them, too, up to
rounding and to dropout, which drops numbers of each row's own where a plain step drops those of a state.
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
"""Steps before the one that is recorded, in which libraries choose their ways."""


def training_step(
    model: MultiScenarioModel,
    optimizers: Optimizers,
    source: BatchSource,
    config: TrainConfig,
    group: Group = ALONE,
) -> Step:
    """A replayed step on a GPU that holds all columns, where the model allows it; otherwise a plain one."""
    plain = PlainStep(model, optimizers, source, config, group)
    return plain if why_plain(model, source, config, group) else RecordedStep(plain)


def why_plain(model: MultiScenarioModel, source: BatchSource, config: TrainConfig, group: Group = ALONE) -> str:
    """Why steps are not recorded, or nothing where they are."""
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
    """A padded batch as it is sent: the numbers of its rows `(P,)`, then how many are real in each scenario `(D,)`."""

    sent: Tensor
    rows: int


class PaddedStep:
    """A step on batches of one shape; those that do not fit it are taken as they are.

    A slice has room for the share that its scenario has of some batches, and for five standard deviations more. A batch
    that lacks a scenario is taken as it is, since what is that scenario's own is not updated then.
    """

    def __init__(self, plain: PlainStep) -> None:
        assert isinstance(plain.source.columns, ResidentColumns)  # see `why_plain`
        self._plain, self._columns = plain, plain.source.columns
        self.loss_sum, self.padded_steps = plain.loss_sum, 0
        c = plain.config
        self._room = room_of(
            plain.source.counts(c.batch_size, c.seed, window=c.shuffle_window, together=c.rows_together)
        )
        self._offsets = [0, *np.cumsum(self._room).tolist()]
        self._scenario = np.repeat(np.arange(len(self._room)), self._room)
        self._place = np.arange(self._offsets[-1]) - np.asarray(self._offsets)[self._scenario]
        size, device = self._offsets[-1], self.loss_sum.device
        self._numbers = torch.zeros(size + len(self._room), dtype=torch.int64, device=device)
        self._rows, counts = self._numbers.split([size, len(self._room)])
        self._slices = PaddedOffsets.of(self._offsets, counts)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Numbers | Batch]:
        """An epoch's batches from step `start` on, made ahead."""
        c = self._plain.config
        chunks = self._plain.source.chunks(
            c.batch_size, c.seed, epoch, start, window=c.shuffle_window, together=c.rows_together
        )
        return prefetched(self.padded(rows) for rows in chunks)

    def padded(self, rows: NDArray[np.int64]) -> Numbers | Batch:
        """The batch of the rows, padded; as it is where a scenario has more rows than room, or has none."""
        rows, offsets = self._plain.source.in_slices(rows)
        counts = np.diff(offsets)
        if (counts > self._room).any() or (counts[self._room > 0] == 0).any():
            return self._plain.source.make(rows)
        real = self._place < counts[self._scenario]
        chosen = rows[offsets[self._scenario] + np.where(real, self._place, 0)]
        sent = torch.from_numpy(np.concatenate([chosen, counts]))
        return Numbers(sent.pin_memory() if self._numbers.is_cuda else sent, len(rows))

    def __call__(self, batch: Numbers | Batch) -> int:
        """Train on a batch; gives its rows."""
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
        """Train on the rows whose numbers were sent."""
        plain = self._plain
        plain.optimizers.zero_grad()
        batch = self._columns.at(self._rows).batch(self._slices)
        loss, _ = losses(plain.model, batch, plain.config.precision)
        loss.backward()
        self.loss_sum += loss.detach()
        plain.optimizers.step()


class RecordedStep(PaddedStep):
    """The same, recorded after some steps and replayed from then on."""

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
        # The thread that makes batches ahead goes on with its own work meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._work()
        return graph


def room_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows that there is room for in each scenario's slice, `(D,)`, where some batches have `counts` `(n, D)`.

    >>> room_of(np.array([[3070, 1026, 0], [3040, 1056, 0]])).tolist()
    [3136, 1120, 0]
    """
    most = counts.mean(0) + 5 * counts.std(0) + 1
    return np.where(counts.any(0), -(-most // 8) * 8, 0).astype(np.int64)
