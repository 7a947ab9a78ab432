"""The tables of a matrix: queries over its results table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.classes import FEWEST, tells
from llm4msr.data.prepared import PreparedData
from llm4msr.experiments.config import MatrixConfig
from llm4msr.experiments.significance import LEVEL, Difference, auc_difference, paired_p_value, telling
from llm4msr.experiments.slices import test_slices
from llm4msr.knowledge.controls import Control
from llm4msr.report.sheets import Cell, Sheet
from llm4msr.report.tables import UNDEFINED, cell

_NOTE = (
    "Mean over seeds ± standard deviation; the best of a line is bold. ★: above the backbone alone, ↓: below, by a "
    f"paired t-test over the seeds (p < {LEVEL:g}); few seeds see little, and many comparisons are not corrected for. "
    f"No mark with one seed. A scenario with fewer than {FEWEST} positives or negatives has neither mark nor bold, and "
    "is in no mean."
)


_WITHOUT_BASE = "No enhancer here is the backbone alone (`[enhancers.none]`), so nothing is compared with it"


def sheets(results: pl.DataFrame, config: MatrixConfig, root: Path) -> list[Sheet]:
    """For each data set: test AUC per scenario, differences from the backbone alone, AUC on slices; then failed runs.

    A note under the first table names models whose knowledge leaks, and what leaks, and a missing backbone alone.
    """
    found = []
    done = finished_seeds(results)
    for name, choice in config.data.items():
        part = done.filter(pl.col("data") == name)
        if part.height:
            data = PreparedData.open(choice.folder, check=False)
            base = config.baseline
            found += [_scenarios(name, part, data, base), _differences(name, part, data, root, base)]
            found.append(_slices(name, part, data, base))
    return [sheet for sheet in [*found, *failures(results)] if sheet is not None]


def finished_seeds(results: pl.DataFrame) -> pl.DataFrame:
    """The finished runs of seeds, from which tables are made."""
    return results.filter((pl.col("kind") == "seed") & (pl.col("status") == "done"))


def failures(results: pl.DataFrame) -> list[Sheet]:
    """A table of the failed runs, each with its reason; no table if none failed."""
    failed = results.filter(pl.col("status") == "failed")
    header = ["data", "backbone", "enhancer", "control", "kind", "number", "reason"]
    lines = [[Cell(str(value)) for value in row] for row in failed[header].rows()]
    return [Sheet("Runs that failed", header, lines, len(header))] if lines else []


def leaks(results: pl.DataFrame) -> str:
    """The enhancers whose knowledge shows rows what they must not know, and what leaks; empty if there are none."""
    found = results.filter(pl.col("leaks").fill_null("") != "").unique(["enhancer", "leaks"], maintain_order=True)
    return "; ".join(f"{enhancer} leaks: {what}" for enhancer, what in found.select("enhancer", "leaks").rows())


def _noted(*notes: str) -> str:
    return " ".join(f"{note.rstrip('.')}." for note in notes if note)


def _groups(part: pl.DataFrame) -> dict[str, dict[str, pl.DataFrame]]:
    """The rows of the seeds, by backbone and by table column, in the order of the results."""
    groups: dict[str, dict[str, pl.DataFrame]] = {}
    keys = ["backbone", "enhancer", "control"]
    for (backbone, enhancer, control), rows in part.group_by(keys, maintain_order=True):
        groups.setdefault(str(backbone), {})[Control(str(control)).label(str(enhancer))] = rows.sort("number")
    return groups


def _columns(groups: dict[str, dict[str, pl.DataFrame]]) -> list[str]:
    return list(dict.fromkeys(label for models in groups.values() for label in models))


def _line(
    labels: Sequence[str],
    models: dict[str, pl.DataFrame],
    columns: Sequence[str],
    metric: str,
    base: str | None,
    *,
    telling: bool,
) -> list[Cell]:
    """Mean and deviation of a metric for each column.

    Unless the rows are too few to be `telling`, the best mean is strong, and a significant difference from `base`, the
    backbone alone, gets a mark.
    """
    values = {c: models[c][metric].to_list() if c in models else [] for c in columns}
    means = {c: float(np.mean(v)) for c, v in values.items() if v and None not in v}
    best = max(means.values(), default=None)
    cells = []
    for c in columns:
        shown = cell(values[c]) if values[c] else ""
        if telling and c in means and c != base and base in means:
            shown += _mark(*_of_same_seeds(models[c], models[base]), metric)
        cells.append(Cell(shown, telling and c in means and means[c] == best))
    return [*(Cell(label) for label in labels), *cells]


def _mark(ours: pl.DataFrame, base: pl.DataFrame, metric: str) -> str:
    """A mark if a metric is above or below the backbone's for the same seeds; empty if that may be chance."""
    differences = (ours[metric] - base[metric]).to_numpy()
    p_value = paired_p_value(differences)
    if p_value is None or p_value >= LEVEL:
        return ""
    return " ★" if differences.mean() > 0 else " ↓"


def _scenarios(name: str, part: pl.DataFrame, data: PreparedData, base: str | None) -> Sheet:
    groups = _groups(part)
    columns = _columns(groups)
    label, scenario = _test_rows(data)
    parts = [(s.title, label[scenario == d]) for d, s in enumerate(data.schema.scenarios)]
    lines = []
    for backbone, models in groups.items():
        for title, rows in parts:
            shown = f"{title} ({len(rows):,} rows, {int(rows.sum()):,} positive)"
            enough = tells(len(rows), int(rows.sum()))
            lines.append(_line([backbone, shown], models, columns, f"auc all: {title}", base, telling=enough))
        enough = telling(label, scenario)
        lines.append(_line([backbone, "mean over scenarios"], models, columns, "mean_auc all", base, telling=enough))
    note = _noted(_NOTE, "" if base else _WITHOUT_BASE, leaks(part))
    return Sheet(f"Test AUC: {name}", ["backbone", "scenario", *columns], lines, 2, note)


def _slices(name: str, part: pl.DataFrame, data: PreparedData, base: str | None) -> Sheet:
    groups = _groups(part)
    columns = _columns(groups)
    label, scenario = _test_rows(data)
    enough = {place: telling(label[mask], scenario[mask]) for place, mask in test_slices(data).items()}
    names = [c.removeprefix("mean_auc ") for c in part.columns if c.startswith("mean_auc ") and c != "mean_auc all"]
    lines = []
    for backbone, models in groups.items():
        for place in names:
            rows = next(iter(models.values()))[f"rows {place}"][0]
            shown, metric = f"{place} ({rows:,} rows)", f"mean_auc {place}"
            lines.append(_line([backbone, shown], models, columns, metric, base, telling=enough.get(place, False)))
    return Sheet(f"Mean test AUC over scenarios, on slices: {name}", ["backbone", "slice", *columns], lines, 2, _NOTE)


def _differences(name: str, part: pl.DataFrame, data: PreparedData, root: Path, base: str | None) -> Sheet | None:
    """Compare each model with the backbone alone, and each enhancer with its controls; None if no pair exists."""
    label, scenario = _test_rows(data)
    user = np.asarray(data.user[slice(*data.split.range("test"))])
    lines = []
    for backbone, models in _groups(part).items():
        pairs = [(column, column, base) for column in models if base is not None and column != base and base in models]
        for column, rows in models.items():
            enhancer, control = rows.select("enhancer", "control").row(0)
            if Control(control).replaces and enhancer in models:
                pairs.append((f"{enhancer} over its {control} control", enhancer, column))
        for title, column, beside in pairs:
            ours, theirs = (_logits(side, root) for side in _of_same_seeds(models[column], models[beside]))
            difference = auc_difference(label, scenario, user, ours, theirs)
            lines.append([Cell(backbone), Cell(title), *_difference_cells(difference)])
    if not lines:
        return None
    header = ["backbone", "enhancer", "difference", "95 % over test users", "p over seeds"]
    note = (
        "Of the mean test AUC over the scenarios. Interval: DeLong's, for independent users; p: paired t-test; "
        f"bold if both agree (so never with one seed). Scenarios with fewer than {FEWEST} positives or negatives are "
        "left out. An enhancer over its control is beside that in place of the backbone. No correction for many "
        "comparisons."
    )
    return Sheet(f"Difference from the backbone alone: {name}", header, lines, 2, note)


def _test_rows(data: PreparedData) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
    """Label and scenario of the test rows."""
    first, last = data.split.range("test")
    return np.asarray(data.label[first:last]), np.asarray(data.scenario[first:last])


def _of_same_seeds(one: pl.DataFrame, other: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The runs of the seeds that both have, in the same order."""
    kept = pl.col("number").is_in(set(one["number"]) & set(other["number"]))
    return one.filter(kept).sort("number"), other.filter(kept).sort("number")


def _difference_cells(found: Difference | None) -> list[Cell]:
    if found is None:
        return [Cell(UNDEFINED), Cell(""), Cell("")]
    p_value = "" if found.p_value is None else f"{found.p_value:.3f}"
    interval = f"{found.low:+.4f} to {found.high:+.4f}"
    return [Cell(f"{found.mean:+.4f}", found.significant), Cell(interval), Cell(p_value)]


def _logits(rows: pl.DataFrame, root: Path) -> list[NDArray[np.float32]]:
    return [_load(root / folder / "test_logits.npy") for folder in rows["folder"]]


def _load(path: Path) -> NDArray[np.float32]:
    found: NDArray[Any] = np.load(path, allow_pickle=False)
    return found
