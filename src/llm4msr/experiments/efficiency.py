"""The paper's Table 3: seconds a batch of training and inference, in one run, and their ratios to the backbone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from statistics import median

import torch

from llm4msr.experiments.cells import Cell, cells_of
from llm4msr.experiments.config import MatrixConfig
from llm4msr.models.batch import Batch
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
        self._step = PlainStep(self._model, train.optimizers(self._model), source, train)  # not all models replay
        epoch = list(islice(self._step.batches(0), batches))
        full = [batch for batch in epoch if len(batch) == train.batch_size] or epoch
        self.rows = max(len(batch) for batch in full)
        self._batches = [full[place % len(full)] for place in range(batches)]
        self.training: list[float] = []
        self.inference: list[float] = []

    def measure(self) -> None:
        """Measure one round: the mean seconds of a training step, then of an inference, over all batches."""
        self._model.train()
        self.training.append(self._timed(self._step))
        self._model.eval()
        with torch.inference_mode():
            self.inference.append(self._timed(lambda batch: self._model(batch)[0]))

    def forget(self) -> None:
        """Drop the measurements of the warm-up."""
        self.training, self.inference = [], []

    def _timed(self, work: Callable[[Batch], object]) -> float:
        _wait(self._model)
        began = time.perf_counter()
        for batch in self._batches:
            work(batch)
        _wait(self._model)
        return (time.perf_counter() - began) / len(self._batches)


def _wait(model: MultiScenarioModel) -> None:
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()


def efficiency(
    config: MatrixConfig, *, batches: int = 10, rounds: int = 5, say: Callable[[str], None] = lambda line: None
) -> list[Sheet]:
    """Measure one table per data set. The models take turns, round by round, so that a busy machine slows all alike.

    A model that fails is named under the table with its reason; the others are still measured.
    """
    cells = [cell for cell in cells_of(config) if not cell.base.knowledge.replacement.replaces]
    found = []
    for name in config.data:
        failed: dict[str, str] = {}
        contenders: list[_Contender] = []
        for cell in (cell for cell in cells if cell.data == name):
            with _noting(failed, cell):
                contenders.append(_Contender(cell, batches))
        for turn in range(rounds + 1):
            say(f"{name}: {len(contenders)} models, {f'round {turn} of {rounds}' if turn else 'warm-up'}")
            for contender in contenders:
                with _noting(failed, contender.cell):
                    contender.measure()
                if turn == 0:
                    contender.forget()
            contenders = [c for c in contenders if c.cell.name not in failed]
        lines = []
        bases = {c.cell.backbone: c for c in contenders if c.cell.enhancer == config.baseline}
        for c in contenders:
            base = bases.get(c.cell.backbone)
            training = _figures(c.training, None if base is None else base.training)
            inference = _figures(c.inference, None if base is None else base.inference)
            lines.append([Text(text) for text in (c.cell.backbone, c.cell.enhancer, *training, *inference)])
        header = ["backbone", "enhancer", "training s", "ratio", "inference s", "ratio"]
        threads, rows = torch.get_num_threads(), max((c.rows for c in contenders), default=0)
        note = (
            f"Seconds a batch of {rows:,} rows that is in memory: the median of {rounds} rounds of {batches} batches, "
            f"{threads} thread{'s' * (threads > 1)}. The ratios are of these. On a GPU steps are taken operation by "
            "operation, not replayed."
        )
        note += "".join(f" Failed: {model}: {reason}." for model, reason in failed.items())
        found.append(Sheet(f"Efficiency: {name}", header, lines, 2, note))
    return found


@contextmanager
def _noting(failed: dict[str, str], cell: Cell) -> Iterator[None]:
    """Record an error in `failed` under the cell's name, and do not raise it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - one model's failure must not end the others
        failed[cell.name] = f"{type(error).__name__}: {error}"


def _figures(ours: list[float], theirs: list[float] | None) -> tuple[str, str]:
    """The median of `ours` in seconds, and its ratio to the median of `theirs`."""
    ratio = "" if theirs is None else f"{median(ours) / median(theirs):.2f}"
    return f"{median(ours):.4f}", ratio
