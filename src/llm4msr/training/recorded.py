"""A training step that a GPU replays.

A step of these models is some hundreds of small operations. A GPU does them in about a millisecond, and Python takes
several times as long to ask for them one by one. So they are asked for once, recorded as a CUDA graph, and replayed
with the numbers of the next batch's rows. A recording has fixed shapes: each scenario's slice is filled up with rows
that have no loss (`PaddedOffsets`). The batches, and what is learned from them, are those of `PlainStep`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm4msr.models.batch import Batch, PaddedOffsets, UserStates
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
    """A replayed step on a GPU that holds all columns, where the model allows it; otherwise a plain one.

    A penalty on generated weights is a mean over the batch's different states, which a recording does not know.
    """
    plain = PlainStep(model, optimizers, source, config, group)
    if source.device.type != "cuda" or not config.cuda_graphs or group.size > 1 or config.generated_decay:
        return plain
    if not (model.backbone.replayable and model.enhancer.replayable):
        return plain
    columns = source.columns
    return RecordedStep(model, optimizers, source, config, columns) if isinstance(columns, ResidentColumns) else plain


@dataclass(frozen=True)
class Numbers:
    """A padded batch as it is sent: the numbers of its rows `(P,)`, then how many are real in each scenario `(D,)`."""

    sent: Tensor
    rows: int


class PaddedStep:
    """A step on batches of one shape; those that do not fit it are taken as they are.

    A slice has room for the share that its scenario has of some batches, and for five standard deviations more.
    """

    def __init__(
        self,
        model: MultiScenarioModel,
        optimizers: Optimizers,
        source: BatchSource,
        config: TrainConfig,
        columns: ResidentColumns,
    ) -> None:
        self._plain = PlainStep(model, optimizers, source, config)
        self._model, self._optimizers, self._source = model, optimizers, source
        self._config, self._columns = config, columns
        self.loss_sum = self._plain.loss_sum
        self._room = room_of(source.counts(config.batch_size, config.seed, together=config.rows_together))
        self._offsets = [0, *np.cumsum(self._room).tolist()]
        self._scenario = np.repeat(np.arange(len(self._room)), self._room)
        self._place = np.arange(self._offsets[-1]) - np.asarray(self._offsets)[self._scenario]
        self._numbers = torch.zeros(self._offsets[-1] + len(self._room), dtype=torch.int64, device=source.device)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Numbers | Batch]:
        """An epoch's batches from step `start` on, made ahead."""
        c = self._config
        chunks = self._source.chunks(
            c.batch_size, c.seed, epoch, start, window=c.shuffle_window, together=c.rows_together
        )
        return prefetched(self.padded(rows) for rows in chunks)

    def padded(self, rows: NDArray[np.int64]) -> Numbers | Batch:
        """The batch of the rows, padded; as it is where a scenario has more rows than room, or has none."""
        rows, offsets = self._source.in_slices(rows)
        counts = np.diff(offsets)
        if (counts > self._room).any() or (counts[self._room > 0] == 0).any():
            return self._source.make(rows)
        real = self._place < counts[self._scenario]
        chosen = rows[offsets[self._scenario] + np.where(real, self._place, 0)]
        sent = torch.from_numpy(np.concatenate([chosen, counts]))
        return Numbers(sent.pin_memory() if self._numbers.is_cuda else sent, len(rows))

    def __call__(self, batch: Numbers | Batch) -> int:
        """Train on a batch; gives its rows."""
        if isinstance(batch, Batch):
            return self._plain(batch)
        if not self._model.training:
            self._model.train()
        self._numbers.copy_(batch.sent, non_blocking=True)
        self._play()
        return batch.rows

    def _play(self) -> None:
        self._work()

    def _work(self) -> None:
        """Train on the rows whose numbers were sent."""
        rows, counts = self._numbers.split([self._offsets[-1], len(self._room)])
        found = self._columns.at(rows)
        batch = Batch(
            categorical=found.categorical,
            multi=found.multi,
            numeric=found.numeric,
            offsets=PaddedOffsets.of(self._offsets, counts),
            label=found.label,
            rows=rows,
            users=None if found.states is None else UserStates(found.states, None),
            item=found.item,
        )
        self._optimizers.zero_grad()
        loss, _ = losses(self._model, batch, self._config.precision)
        loss.backward()
        self.loss_sum += loss.detach()
        self._optimizers.step()


class RecordedStep(PaddedStep):
    """The same, recorded after some steps and replayed from then on."""

    _graph: torch.cuda.CUDAGraph | None = None
    _warm = 0

    def _play(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        if self._warm < _WARM:
            self._warm += 1
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                self._work()
            here.wait_stream(aside)
            return
        self._graph = torch.cuda.CUDAGraph()
        self._optimizers.zero_grad()
        # The thread that makes batches ahead goes on with its own work meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._work()
        self._graph.replay()


def room_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows that there is room for in each scenario's slice, `(D,)`, where some batches have `counts` `(n, D)`.

    >>> room_of(np.array([[3070, 1026, 0], [3040, 1056, 0]])).tolist()
    [3136, 1120, 0]
    """
    most = counts.mean(0) + 5 * counts.std(0) + 1
    return np.where(counts.any(0), -(-most // 8) * 8, 0).astype(np.int64)
