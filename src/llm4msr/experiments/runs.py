"""One run of a cell, and its row in the results table."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.experiments.cells import RUNS, Cell
from llm4msr.experiments.slices import Mask, test_slices
from llm4msr.folders import write_json
from llm4msr.training.config import RunConfig
from llm4msr.training.fit import TrainProgress
from llm4msr.training.identity import resolved_config
from llm4msr.training.metrics import score
from llm4msr.training.run import train_run

Kind = Literal["trial", "seed"]
ROW = "row.json"


@dataclass(frozen=True)
class Run:
    """A row of the results table, and the folder of its run."""

    row: dict[str, Any]
    folder: Path

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return bool(self.row["status"] == "failed")


def run_folder(cell: Cell, root: Path, kind: Kind, number: int, config: RunConfig) -> tuple[Path, str]:
    """A run's folder, and the hash of its settings, data and knowledge. Other settings give another folder."""
    text = json.dumps(resolved_config(config, places=False), sort_keys=True)
    identity = hashlib.sha256(text.encode()).hexdigest()
    return root / cell.folder / f"{kind}-{number}-{identity[:8]}", identity


def finished(folder: Path) -> Run | None:
    """The run in a folder if it ended without an error, or None."""
    try:
        row = json.loads((folder / ROW).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Run(row, folder) if row.get("status") == "done" else None


def known(cell: Cell, root: Path, kind: Kind, number: int, config: RunConfig) -> Run | None:
    """The finished run with these settings: the cell's own, or one of another cell or study below `root`."""
    folder, identity = run_folder(cell, root, kind, number, config)
    if (run := finished(folder)) is not None:
        return run
    for path in sorted(root.glob(f"{RUNS}/*/*/*/{folder.name}/{ROW}")):
        run = finished(path.parent)
        if run is not None and run.row["settings"] == identity:
            return Run(run.row | _labels(cell), run.folder)
    return None


def _trial_of(cell: Cell, root: Path, identity: str) -> Run | None:
    """The cell's finished trial with these settings."""
    for path in sorted((root / cell.folder).glob(f"trial-*-{identity[:8]}/{ROW}")):
        run = finished(path.parent)
        if run is not None and run.row["settings"] == identity:
            return run
    return None


def _labels(cell: Cell) -> dict[str, str]:
    return {"data": cell.data, "backbone": cell.backbone, "enhancer": cell.enhancer, "control": cell.control}


def execute(
    cell: Cell,
    root: Path,
    kind: Kind,
    number: int,
    config: RunConfig,
    progress: Callable[[str, TrainProgress], None] = lambda name, progress: None,
) -> Run:
    """Make a run, or take a finished run with the same settings. An error becomes a row with its reason.

    A seed with the same settings as a finished trial of the cell, random seed included, is not trained again: the trial
    is scored on the test part.
    """
    if (before := known(cell, root, kind, number, config)) is not None:
        return before
    folder, identity = run_folder(cell, root, kind, number, config)
    row = _row(cell, root, kind, number, config, folder, identity)
    (folder / ROW).unlink(missing_ok=True)  # `train_run` refuses a folder that has a row but no run
    try:
        if kind == "seed" and (trial := _trial_of(cell, root, identity)) is not None:
            again = {"kind": kind, "number": number} | _test_metrics(config, root / trial.row["folder"])
            return _written(trial.row | again, folder)
        result = train_run(config, folder, partial(progress, f"{cell.name}, {kind} {number}"))
        data = PreparedData.open(config.data, check=False)
        row |= {
            "status": "done",
            "reason": "",
            "data_checksum": data.fingerprint,
            "valid_auc": result.validation_auc,
            "best_epoch": result.best_epoch,
            "seconds": result.seconds,
            "process_peak_memory_mb": _peak_memory(),
            "parameters": result.parameters,
            "leaks": result.leaks,
            "versions": (folder / "versions.json").read_text(encoding="utf-8"),
        }
        if kind == "seed":
            row |= _test_metrics(config, folder)
    except Exception as error:  # noqa: BLE001 - one cell's failure must not end the others
        row |= {"status": "failed", "reason": _reason(error, folder)}
    return _written(row, folder)


def _reason(error: Exception, folder: Path) -> str:
    """What an error says and, if it is not one of the user's input, where it is; then `folder` gets its traceback."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, InputError):
        return reason
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{reason} ({Path(last.filename).name}, line {last.lineno}; traceback.txt in the run's folder has all)"


def killed(cell: Cell, root: Path, number: int) -> Run:
    """The failed run, of seed `number`, of a cell whose process was killed, as by a machine that is out of memory."""
    folder, identity = run_folder(cell, root, "seed", number, cell.base)
    row = _row(cell, root, "seed", number, cell.base, folder, identity)
    reason = "its process was killed; is there enough memory? Give fewer --jobs"
    return _written(row | {"status": "failed", "reason": reason}, folder)


def _row(
    cell: Cell, root: Path, kind: Kind, number: int, config: RunConfig, folder: Path, identity: str
) -> dict[str, Any]:
    """The columns of a row that are known before the run ends."""
    return {
        **_labels(cell),
        "kind": kind,
        "number": number,
        "learning_rate": config.train.learning_rate,
        "embedding_decay": config.train.embedding_decay,
        "settings": identity,
        "folder": str(folder.relative_to(root)),
        "leaks": "",
    }


def _written(row: dict[str, Any], folder: Path) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ROW, row)
    return Run(row, folder)


@lru_cache(maxsize=2)
def _slices(path: Path, fingerprint: str) -> Mapping[str, Mask]:
    del fingerprint  # part of the key: data may be prepared anew in the same folder
    return test_slices(PreparedData.open(path, check=False))


def _test_metrics(config: RunConfig, folder: Path) -> dict[str, float | int | None]:
    """AUC, log loss and rows over all, for each scenario and for each slice."""
    data = PreparedData.open(config.data, check=False)
    first, last = data.split.range("test")
    label, scenario = np.asarray(data.label[first:last]), np.asarray(data.scenario[first:last])
    logits = np.load(folder / "test_logits.npy", allow_pickle=False)
    everything = np.ones(len(label), dtype=bool)
    found: dict[str, float | int | None] = {}
    for name, mask in {"all": everything, **_slices(config.data, data.fingerprint)}.items():
        scores = score(label[mask], logits[mask], scenario[mask], data.scenario_count)
        titles = [f"{name}: {s.title}" for s in data.schema.scenarios]
        for title, part in zip([name, *titles], [scores.overall, *scores.scenarios], strict=True):
            found |= {f"auc {title}": part.auc, f"log_loss {title}": part.log_loss, f"rows {title}": part.rows}
        found[f"mean_auc {name}"] = scores.mean_auc
    return found


def _peak_memory() -> float:
    """The peak memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
