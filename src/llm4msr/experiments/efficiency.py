"""The paper's Table 3: seconds a batch of training and inference, in one run, and their ratios to the backbone."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from statistics import median
from typing import Any

import torch

from llm4msr.experiments.cells import Cell, cells_of
from llm4msr.experiments.config import MatrixConfig
from llm4msr.experiments.tables import BASE
from llm4msr.models.model import MultiScenarioModel
from llm4msr.report.sheets import Cell as Text
from llm4msr.report.sheets import Sheet
from llm4msr.training.opening import open_run
from llm4msr.training.step import PlainStep


class _Contender:
    """A model with batches in memory, whose steps can be timed."""

    def __init__(self, cell: Cell, batches: int) -> None:
        self.cell = cell
        train = cell.base.train
        _, source, self._model = open_run(cell.base)
        self._step = PlainStep(self._model, train.optimizers(self._model), source, train)  # not every model replays
        self._training_batches = list(islice(self._step.batches(0), batches))
        epoch = source.epoch(train.batch_size, train.seed, 0, together=train.rows_together)
        self._batches = list(islice(epoch, batches))
        self.training: list[float] = []
        self.inference: list[float] = []

    def measure(self) -> None:
        """One round: the mean seconds of a training step, then of an inference, over all batches."""
        self._model.train()
        self.training.append(self._timed(self._step, self._training_batches))
        self._model.eval()
        with torch.inference_mode():
            self.inference.append(self._timed(lambda batch: self._model(batch)[0], self._batches))

    def forget(self) -> None:
        """Drop what was measured while warming up."""
        self.training, self.inference = [], []

    def _timed(self, work: Callable[[Any], object], batches: list[Any]) -> float:
        _wait(self._model)
        began = time.perf_counter()
        for batch in batches:
            work(batch)
        _wait(self._model)
        return (time.perf_counter() - began) / len(batches)


def _wait(model: MultiScenarioModel) -> None:
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()


def efficiency(config: MatrixConfig, *, batches: int = 10, rounds: int = 5) -> list[Sheet]:
    """A table for each data set. The models take turns, round by round, so that a busy machine slows all alike."""
    cells = [cell for cell in cells_of(config) if cell.control == "none"]
    found = []
    for name in config.data:
        contenders = [_Contender(cell, batches) for cell in cells if cell.data == name]
        for turn in range(rounds + 1):
            for contender in contenders:
                contender.measure()
                if turn == 0:
                    contender.forget()
        lines = []
        bases = {c.cell.backbone: c for c in contenders if c.cell.enhancer == BASE}
        for c in contenders:
            base = bases.get(c.cell.backbone)
            training = _figures(c.training, None if base is None else base.training)
            inference = _figures(c.inference, None if base is None else base.inference)
            lines.append([Text(text) for text in (c.cell.backbone, c.cell.enhancer, *training, *inference)])
        header = ["backbone", "enhancer", "training s", "ratio", "inference s", "ratio"]
        note = (
            f"Seconds a batch of {config.train.batch_size} rows that is in memory: the median of {rounds} rounds of "
            f"{batches} batches, {torch.get_num_threads()} threads. The ratios are of these. On a GPU steps are taken "
            "operation by operation, not replayed."
        )
        found.append(Sheet(f"Efficiency: {name}", header, lines, 2, note))
    return found


def _figures(ours: list[float], theirs: list[float] | None) -> tuple[str, str]:
    """The median seconds, and their ratio."""
    ratio = "" if theirs is None else f"{median(ours) / median(theirs):.2f}"
    return f"{median(ours):.4f}", ratio
