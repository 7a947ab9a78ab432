"""Estimates how long a matrix will take: the time of a few steps of each cell, times the most steps it may run."""

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
    """An upper estimate of the seconds of a run's training steps; early stopping shortens it, validation adds some."""
    _, source, model = open_run(cell.base, trains=True)
    train = cell.base.train
    step = training_step(model, train.optimizers(model), source, train)
    times = [time.perf_counter()]
    for batch in islice(step.batches(0), _STEPS + 1):
        step(batch)
        step.loss_sum.item()  # wait for a GPU
        times.append(time.perf_counter())
    taken = np.diff(times)
    a_step = float(np.median(taken[-3:]))  # the first steps warm up
    return a_step * source.steps("train", train.batch_size) * train.epochs


def seconds_of(cells: list[Cell], config: MatrixConfig, jobs: int) -> tuple[float, list[str]]:
    """An upper estimate of the seconds of a whole matrix, and the cells that cannot be run, each with its reason.

    Nothing counts as finished, and `jobs` cells at once are assumed to be `jobs` times as fast.
    """
    runs, seconds, failed = config.search.trials + config.seeds, 0.0, []
    for cell in cells:
        try:
            seconds += seconds_a_run(cell) * runs
        except Exception as error:  # noqa: BLE001 - one cell's failure must not hide what the others take
            failed.append(f"{cell.name}: {type(error).__name__}: {error}")
    return seconds / jobs, failed
