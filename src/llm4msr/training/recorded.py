"""A training step that a GPU replays.

A step of these models is some hundreds of small operations. A GPU runs them in about a millisecond, but Python takes
several times as long to launch them one by one. So they are launched once, recorded as a CUDA graph, and replayed with
the row numbers of the next batch. A recording has fixed shapes: each scenario's slice is padded with rows that have no
loss (`padding`). The batches are the same as those of `PlainStep`, and so is the training, up to rounding and
dropout: here each row has its own dropped numbers, in a plain step rows with the same state share them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from llm4msr.models.batch import Batch, PaddedOffsets
from llm4msr.models.model import MultiScenarioModel
from llm4msr.training.batches import BatchSource, prefetched
from llm4msr.training.columns import ResidentColumns
from llm4msr.training.compiled import compiled, compiling
from llm4msr.training.objective import losses
from llm4msr.training.optim import Optimizers
from llm4msr.training.padding import Numbers, Shape, Shapes
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


class Recording:
    """The work on batches of one shape: what it reads, and the recording, once there is one."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.sent = torch.zeros(len(shape) + len(shape.room), dtype=torch.int64, device=device)
        self.rows, counts = self.sent.split([len(shape), len(shape.room)])
        self.slices = PaddedOffsets.of(shape.offsets, counts)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.warm = 0


class PaddedStep:
    """A step on padded batches. A batch for which there is no shape (see `padding`) runs as a plain step."""

    def __init__(self, plain: PlainStep) -> None:
        assert isinstance(plain.source.columns, ResidentColumns)  # see `why_plain`
        self._plain, self._columns = plain, plain.source.columns
        self.loss_sum, self.padded_steps = plain.loss_sum, 0
        self._device, self._model = self.loss_sum.device, plain.model
        self._shapes = Shapes(plain.source.counts(plain.config.drawing))
        self._recordings: dict[Shape, Recording] = {}

    def batches(self, epoch: int, start: int = 0) -> Iterator[Numbers | Batch]:
        """An epoch's batches from step `start` on, made ahead."""
        chunks = self._plain.source.chunks(self._plain.config.drawing, epoch, start)
        return prefetched(self.padded(rows) for rows in chunks)

    def padded(self, rows: NDArray[np.int64]) -> Numbers | Batch:
        """The batch of the rows, padded; unpadded if there is no shape for it."""
        rows, offsets = self._plain.source.in_slices(rows)
        shape = self._shapes.of(np.diff(offsets))
        if shape is None:
            return self._plain.source.make(rows)
        return Numbers.of(shape, rows, offsets, pinned=self._device.type == "cuda")

    def __call__(self, batch: Numbers | Batch) -> int:
        """Train on a batch; returns its number of rows."""
        if isinstance(batch, Batch):
            return self._plain(batch)
        if not self._plain.model.training:
            self._plain.model.train()
        if batch.shape not in self._recordings:
            self._recordings[batch.shape] = Recording(batch.shape, self._device)
        recording = self._recordings[batch.shape]
        recording.sent.copy_(batch.sent, non_blocking=True)
        self._play(recording)
        self.padded_steps += 1
        return batch.rows

    def _play(self, recording: Recording) -> None:
        self._work(recording)

    def _work(self, recording: Recording) -> None:
        """Train on the rows whose numbers are on the device."""
        plain = self._plain
        plain.optimizers.zero_grad()
        batch = self._columns.at(recording.rows).batch(recording.slices)
        loss, _ = losses(self._model, batch, plain.config.precision)
        loss.backward()
        self.loss_sum += loss.detach()
        plain.optimizers.step()


class RecordedStep(PaddedStep):
    """A `PaddedStep` that is recorded, for each shape, after some steps and replayed from then on."""

    def __init__(self, plain: PlainStep) -> None:
        super().__init__(plain)
        if plain.config.compile:
            self._model = compiled(plain.model)
        # Recordings may share memory: they are not replayed at the same time, and none reads what another one left.
        self._memory = torch.cuda.graph_pool_handle()

    def _play(self, recording: Recording) -> None:
        with torch.cuda.device(self._device):
            if recording.graph is not None:
                recording.graph.replay()
            elif recording.warm < _WARM:
                recording.warm += 1
                self._warm_up(recording)
            else:
                recording.graph = self._recorded(recording)
                recording.graph.replay()

    def _warm_up(self, recording: Recording) -> None:
        """Work without a recording, but on a stream of its own, as a recording does."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside), compiling(len(self._shapes)):
            self._work(recording)
        here.wait_stream(aside)

    def _recorded(self, recording: Recording) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self._plain.optimizers.zero_grad()
        # "thread_local": the thread that makes batches ahead may use CUDA during the recording.
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            self._work(recording)
        return graph
