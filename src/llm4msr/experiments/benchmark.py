"""Runs a matrix: for each cell a search on validation data, then the seeds. It may be stopped and restarted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

import polars as pl
import torch

from llm4msr.cores import usable_cores
from llm4msr.errors import InputError
from llm4msr.experiments.cells import RUNS, Cell, cells_of
from llm4msr.experiments.config import MatrixConfig
from llm4msr.experiments.runs import Kind, Run, execute, killed, known
from llm4msr.experiments.search import Settings, best_of, propose
from llm4msr.folders import file_aside, sole_writer
from llm4msr.training.config import RunConfig
from llm4msr.training.fit import TrainProgress

Say = Callable[[str], None]
Training = Callable[[str, TrainProgress], None]
RESULTS = "results.parquet"


@dataclass(frozen=True)
class Plan:
    """How many runs a matrix has, and how many of them are done."""

    cells: int
    runs: int
    done: int


def plan(config: MatrixConfig, root: Path) -> Plan:
    """Count the runs of a matrix, and the finished ones. Checks first that every cell can be run; see `cells_of`."""
    cells = cells_of(config)
    done = sum(len(_done(cell, config, root)) for cell in cells)
    return Plan(len(cells), len(cells) * (config.search.trials + config.seeds), done)


def run_matrix(
    config: MatrixConfig,
    root: Path,
    *,
    jobs: int = 1,
    say: Say = lambda message: None,
    progress: Training = lambda name, progress: None,
    results: str = RESULTS,
) -> pl.DataFrame:
    """Run every cell that is not finished, `jobs` at once, and return the results table: one row per run.

    The table is written to the file `results` in `root` whenever a cell ends. Several matrices may share a `root`;
    a run that two of them have in common is made once. `progress` is called with a run's name at each of its
    validations, but only if `jobs` is 1. A run that fails is in the table with its reason, and the others go on; the
    next call tries it again. Raises `InputError` before anything runs if a cell cannot be run, or if the file has
    results of cells that this matrix does not have, because the new table would lose them, or if another process is at
    work in `root`.
    """
    cells = cells_of(config)
    path = root / results
    _check_kept(cells, path)
    claim(root)
    found: dict[int, list[Run]] = {}
    with sole_writer(root):
        for ended, (place, runs) in enumerate(_run_all(cells, config, root, jobs, progress), start=1):
            found[place] = runs
            rows = [run.row for _, cell_runs in sorted(found.items()) for run in cell_runs]
            _write(rows, path)
            say(f"{ended} of {len(cells)}: {_summary(cells[place], runs)}")
    return pl.read_parquet(path)


def claim(root: Path) -> None:
    """Make `root` a folder for studies. Raises `InputError` if it is a file, or holds something other than runs."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: is a file; name a folder for the runs")
    if root.is_dir() and any(root.iterdir()) and not (root / RUNS).is_dir():
        raise InputError(f"{root}: holds something else than runs; name another folder for them")
    (root / RUNS).mkdir(parents=True, exist_ok=True)


def _check_kept(cells: Sequence[Cell], path: Path) -> None:
    if not path.is_file():
        return
    keys = ["data", "backbone", "enhancer", "control"]
    before = pl.read_parquet(path, columns=keys).unique(maintain_order=True)
    now = {(cell.data, cell.backbone, cell.enhancer, cell.control) for cell in cells}
    if lost := [row for row in before.rows() if row not in now]:
        raise InputError(
            f"{path}: has results of {len(lost)} cells that this matrix does not have, such as "
            f"{'/'.join(lost[0])}; choose another folder, or keep those cells in the matrix (finished runs are not run "
            "again)"
        )


def run_cell(
    cell: Cell, config: MatrixConfig, root: Path, progress: Training = lambda name, progress: None
) -> list[Run]:
    """Run the trials of a cell, then its seeds with the best trial's settings; no seeds if every trial fails."""
    return _taken(cell, config, lambda kind, number, settings: execute(cell, root, kind, number, settings, progress))


def finished_runs(config: MatrixConfig, root: Path) -> list[Run]:
    """The finished runs of all cells, as far as the finished trials determine their settings."""
    return [run for cell in cells_of(config) for run in _done(cell, config, root)]


def _done(cell: Cell, config: MatrixConfig, root: Path) -> list[Run]:
    """The finished runs of a cell. Those after an unfinished trial do not count: their settings depend on it."""
    return _taken(cell, config, lambda kind, number, settings: known(cell, root, kind, number, settings))


def _taken(cell: Cell, config: MatrixConfig, take: Callable[[Kind, int, RunConfig], Run | None]) -> list[Run]:
    """Collect the runs that `take` returns: trials, each with settings that depend on the earlier ones, then seeds.

    Stops at a trial for which `take` returns None.
    """
    train = cell.base.train
    start: Settings = {"learning_rate": train.learning_rate, "embedding_decay": train.embedding_decay}
    runs: list[Run] = []
    history: list[tuple[Settings, float | None]] = []
    for number in range(config.search.trials):
        settings = propose(config.search, start, history, seed=train.seed)
        trial = take("trial", number, cell.config(**settings, seed=train.seed))
        if trial is None:
            return runs
        runs.append(trial)
        history.append((settings, None if trial.failed else trial.row["valid_auc"]))
    if runs and all(run.failed for run in runs):
        return runs
    best = best_of(history, start)
    seeds = (take("seed", n, cell.config(**best, seed=train.seed + n)) for n in range(config.seeds))
    return [*runs, *(run for run in seeds if run is not None)]


def _run_all(
    cells: Sequence[Cell], config: MatrixConfig, root: Path, jobs: int, progress: Training
) -> Iterator[tuple[int, list[Run]]]:
    """Run all cells; yield the place and the runs of each cell when it ends."""
    if jobs == 1:
        for place, cell in enumerate(cells):
            yield place, run_cell(cell, config, root, progress)
        return
    left = dict(enumerate(cells))
    for place, runs in _at_once(left, config, root, jobs):
        if runs is not None:
            del left[place]
            yield place, runs
    for place, cell in left.items():  # a process was killed, it is unknown in which cell: run each in its own process
        for _, runs in _at_once({place: cell}, config, root, 1):
            yield place, _with_killed(cell, config, root) if runs is None else runs


def _with_killed(cell: Cell, config: MatrixConfig, root: Path) -> list[Run]:
    """The finished runs of a cell whose process was killed, and the one that it failed in."""
    done = _done(cell, config, root)
    return [*done, killed(cell, root, sum(run.row["kind"] == "seed" for run in done))]


def _at_once(
    cells: Mapping[int, Cell], config: MatrixConfig, root: Path, jobs: int
) -> Iterator[tuple[int, list[Run] | None]]:
    """Run cells in `jobs` processes; yield place and runs, or None for cells that a killed process left unfinished."""
    threads = max(1, usable_cores() // jobs)
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(threads,))
    try:
        waiting = {pool.submit(run_cell, cell, config, root): place for place, cell in cells.items()}
        for future in as_completed(waiting):
            lost = isinstance(future.exception(), BrokenProcessPool)
            yield waiting[future], None if lost else future.result()
    except KeyboardInterrupt:  # the next call resumes the runs from their checkpoints
        for process in list(pool._processes.values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
    """Set a worker's number of threads, and end it as soon as the process that started it is gone, even if killed."""
    torch.set_num_threads(threads)
    if (parent := parent_process()) is not None:
        Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _write(rows: list[dict[str, object]], path: Path) -> None:
    with file_aside(path) as aside:
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(aside)


def _summary(cell: Cell, runs: list[Run]) -> str:
    failed = [run for run in runs if run.failed]
    if failed:
        return f"{cell.name}: {len(failed)} run(s) failed: {failed[0].row['reason']}"
    seeds = [run.row["mean_auc all"] for run in runs if run.row["kind"] == "seed"]
    shown = "undefined" if None in seeds or not seeds else f"{sum(seeds) / len(seeds):.4f}"
    many = f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"
    return f"{cell.name}: mean test AUC {shown} over {many}, {sum(run.row['seconds'] for run in runs):.0f} s"
