"""Runs a matrix: for each cell a search on validation data, then the seeds. Stop it at any time and start it again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import polars as pl
import torch

from llm4msr.errors import InputError
from llm4msr.experiments.cells import RUNS, Cell, cells_of
from llm4msr.experiments.config import MatrixConfig
from llm4msr.experiments.runs import Kind, Run, execute, killed, known
from llm4msr.experiments.search import Settings, best_of, propose
from llm4msr.folders import file_aside
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
    """What is to be done, after checking that every cell can be run; see `cells_of` for the errors."""
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
    """Run every cell that is not finished, `jobs` at once, and give the results table: one row a run.

    The table is written to the file `results` in `root` whenever a cell ends; several matrices may share a `root`,
    and what two of them have in common is run once. `progress` is told of each run's validations, with its name,
    where cells do not run at once. A run that fails is in the table with its reason, and the others go on; it is
    tried again the next time. Raises `InputError` before anything runs where a cell is impossible, and where the
    file has results of cells that this matrix does not have, which its tables would leave out.
    """
    cells = cells_of(config)
    path = root / results
    _check_kept(cells, path)
    claim(root)
    found: dict[int, list[Run]] = {}
    for ended, (place, runs) in enumerate(_run_all(cells, config, root, jobs, progress), start=1):
        found[place] = runs
        rows = [run.row for _, cell_runs in sorted(found.items()) for run in cell_runs]
        _write(rows, path)
        say(f"{ended} of {len(cells)}: {_summary(cells[place], runs)}")
    return pl.read_parquet(path)


def claim(root: Path) -> None:
    """Make a folder one of studies. Raises `InputError` where it is a file, or holds something else."""
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
    """The trials of a cell, then its seeds with the best trial's settings; no seeds where every trial fails."""
    return _taken(cell, config, lambda kind, number, settings: execute(cell, root, kind, number, settings, progress))


def _done(cell: Cell, config: MatrixConfig, root: Path) -> list[Run]:
    """The finished runs of a cell, as far as what was searched before allows to tell."""
    return _taken(cell, config, lambda kind, number, settings: known(cell, root, kind, number, settings))


def _taken(cell: Cell, config: MatrixConfig, take: Callable[[Kind, int, RunConfig], Run | None]) -> list[Run]:
    """The runs that `take` gives, of the trials as they follow from each other, then of the seeds."""
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
    """Every cell's runs, as they end."""
    if jobs == 1:
        for place, cell in enumerate(cells):
            yield place, run_cell(cell, config, root, progress)
        return
    left = dict(enumerate(cells))
    for place, runs in _at_once(left, config, root, jobs):
        if runs is not None:
            del left[place]
            yield place, runs
    for place, cell in left.items():  # a process was killed, and nobody knows which cell's: now each has its own
        for _, runs in _at_once({place: cell}, config, root, 1):
            yield place, [killed(cell, root)] if runs is None else runs


def _at_once(
    cells: Mapping[int, Cell], config: MatrixConfig, root: Path, jobs: int
) -> Iterator[tuple[int, list[Run] | None]]:
    """Each cell's runs, in processes of their own; None of those that had not ended when a process was killed."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_use_threads, initargs=(threads,))
    try:
        waiting = {pool.submit(run_cell, cell, config, root): place for place, cell in cells.items()}
        for future in as_completed(waiting):
            lost = isinstance(future.exception(), BrokenProcessPool)
            yield waiting[future], None if lost else future.result()
    except KeyboardInterrupt:  # runs go on from their checkpoints
        for process in list(pool._processes.values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _use_threads(count: int) -> None:
    torch.set_num_threads(count)


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
