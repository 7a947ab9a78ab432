"""About how long a matrix will take: a few training steps of each cell, times the most steps it may run."""

from __future__ import annotations

import time
from itertools import islice

import numpy as np

from llm4msr.experiments.cells import Cell
from llm4msr.experiments.config import MatrixConfig
from llm4msr.training.opening import open_run
from llm4msr.training.recorded import training_step

_STEPS = 5


def seconds_a_run(cell: Cell) -> float:
    """The most seconds that a run's training steps take; early stopping ends it sooner, validation adds some."""
    _, source, model = open_run(cell.base, trains=True)
    train = cell.base.train
    step = training_step(model, train.optimizers(model), source, train)
    times = [time.perf_counter()]
    for batch in islice(step.batches(0), _STEPS + 1):
        step(batch)
        step.loss_sum.item()  # a GPU is waited for
        times.append(time.perf_counter())
    taken = np.diff(times)
    a_step = float(np.median(taken[-3:]))  # the first steps warm up
    return a_step * source.steps("train", train.batch_size) * train.epochs


def seconds_of(cells: list[Cell], config: MatrixConfig, jobs: int) -> tuple[float, list[str]]:
    """The most seconds of a whole matrix from its start, and the cells that cannot be run, each with its reason.

    `jobs` at once are taken to share the machine perfectly.
    """
    runs, seconds, failed = config.search.trials + config.seeds, 0.0, []
    for cell in cells:
        try:
            seconds += seconds_a_run(cell) * runs
        except Exception as error:  # noqa: BLE001 - one cell's failure must not hide what the others take
            failed.append(f"{cell.name}: {type(error).__name__}: {error}")
    return seconds / jobs, failed
