"""Estimates how long a matrix will take: a run of each cell is opened, takes a few steps and scores some batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice

import numpy as np
import torch

from llm4msr.experiments.cells import Cell
from llm4msr.experiments.config import MatrixConfig
from llm4msr.models.model import MultiScenarioModel
from llm4msr.training.batches import BatchSource
from llm4msr.training.opening import open_run
from llm4msr.training.recorded import training_step

_STEPS = 5


def seconds_a_run(cell: Cell) -> float:
    """An upper estimate of the seconds of a run with all its epochs; early stopping shortens it."""
    began = time.perf_counter()
    data, source, model = open_run(cell.base, trains=True)
    opened = time.perf_counter() - began
    train = cell.base.train
    step = training_step(model, train.optimizers(model), source, train)
    times = [time.perf_counter()]
    for batch in islice(step.batches(0), _STEPS + 1):
        step(batch)
        step.loss_sum.item()  # wait for a GPU
        times.append(time.perf_counter())
    taken = np.diff(times)
    a_step = float(np.median(taken[-3:]))  # the first steps warm up
    scored = data.split.test - data.split.valid
    validations = scored * train.epochs * train.validations_per_epoch + data.split.rows - data.split.test
    return (
        opened
        + a_step * source.steps("train", train.batch_size) * train.epochs
        + _a_row(model, source, train.batch_size) * validations
    )


@torch.no_grad()
def _a_row(model: MultiScenarioModel, source: BatchSource, size: int) -> float:
    """The seconds that making a batch of rows and scoring them takes, by row: the fastest of a few."""
    model.eval()
    fastest, began = float("inf"), time.perf_counter()
    for batch in islice(source.part("valid", size, enhancer=model.enhancer), 3):
        model(batch)[0].sum().item()
        now = time.perf_counter()
        fastest, began = min(fastest, (now - began) / len(batch.rows)), now
    return fastest


def seconds_of(
    cells: list[Cell], config: MatrixConfig, jobs: int, say: Callable[[str], None] = lambda message: None
) -> tuple[float, list[str]]:
    """An upper estimate of the seconds of a whole matrix, and the cells that cannot be run, each with its reason.

    Nothing counts as finished, and `jobs` cells at once are assumed to be `jobs` times as fast. `say` is told of every
    cell.
    """
    runs, seconds, failed = config.search.trials + config.seeds, 0.0, []
    for place, cell in enumerate(cells, start=1):
        say(f"trying {place} of {len(cells)}: {cell.name}")
        try:
            seconds += seconds_a_run(cell) * runs
        except Exception as error:  # noqa: BLE001 - one cell's failure must not hide what the others take
            failed.append(f"{cell.name}: {type(error).__name__}: {error}")
    return seconds / jobs, failed
