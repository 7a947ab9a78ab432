"""The paper's Figure 3 and Figure 4 from a results table: improvements of variants, and AUC over a swept setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import polars as pl

from llm4msr.data.prepared import PreparedData
from llm4msr.experiments.config import MatrixConfig
from llm4msr.experiments.tables import finished_seeds
from llm4msr.knowledge.controls import NO_CONTROL, Control
from llm4msr.report.figures import Panel
from llm4msr.report.sheets import Cell, Sheet
from llm4msr.report.tables import UNDEFINED

_MEAN = "mean"


def improvements(results: pl.DataFrame, config: MatrixConfig) -> list[Panel]:
    """Figure 3: for each data set and backbone, each variant's test AUC in per cent above that of the backbone alone.

    Each seed is compared with the same seed of the backbone; the deviation is over the seeds.
    """
    panels = []
    for name, choice in config.data.items():
        metrics = _metrics(PreparedData.open(choice.folder, check=False))
        for backbone in config.backbones:
            rows = _finished(results, name, backbone)
            bases = {row["number"]: row for row in rows if row["enhancer"] == config.baseline}
            series: dict[str, list[tuple[float, float]]] = {}
            for enhancer, control in _columns(config):
                seeds = [
                    row
                    for row in rows
                    if (row["enhancer"], row["control"]) == (enhancer, control) and row["number"] in bases
                ]
                series[Control(control).label(enhancer)] = [
                    _summary([_above(row[metric], bases[row["number"]][metric]) for row in seeds])
                    for metric in metrics.values()
                ]
            panels.append(Panel(f"{name}, {backbone}", list(metrics), series, y="improvement of AUC, %"))
    return panels


def swept(results: pl.DataFrame, config: MatrixConfig, setting: str) -> list[Panel]:
    """Figure 4: for each data set and backbone, the test AUC of each scenario over the values of a setting."""
    panels = []
    for name, choice in config.data.items():
        metrics = _metrics(PreparedData.open(choice.folder, check=False))
        for backbone in config.backbones:
            rows = _finished(results, name, backbone)
            labels = [label for label in config.enhancers if label != config.baseline]
            series = {
                title: [_summary([row[metric] for row in rows if row["enhancer"] == label]) for label in labels]
                for title, metric in metrics.items()
            }
            places = [label.rpartition("= ")[2] for label in labels]
            panels.append(Panel(f"{name}, {backbone}", places, series, x=setting, y="test AUC"))
    return panels


def as_sheet(panel: Panel, title: str, mean: str, deviation: str, note: str = "") -> Sheet:
    """A panel as a table: a line per place, a column per series. `mean` and `deviation` are format specifications."""
    lines = [
        [Cell(place), *(_shown(values[at], mean, deviation) for values in panel.series.values())]
        for at, place in enumerate(panel.places)
    ]
    return Sheet(f"{title}: {panel.title}", [panel.x or "scenario", *panel.series], lines, 1, note)


def _shown(value: tuple[float, float], mean: str, deviation: str) -> Cell:
    middle, spread = value
    if math.isnan(middle):
        return Cell(UNDEFINED)
    return Cell(f"{middle:{mean}}" + (f" ±{spread:{deviation}}" if spread else ""))


def _metrics(data: PreparedData) -> dict[str, str]:
    """From the name of each scenario, and of their mean, to the column of its AUC in the results."""
    return {s.title: f"auc all: {s.title}" for s in data.schema.scenarios} | {_MEAN: "mean_auc all"}


def _finished(results: pl.DataFrame, data: str, backbone: str) -> list[dict[str, object]]:
    return finished_seeds(results).filter(pl.col("data") == data, pl.col("backbone") == backbone).to_dicts()


def _columns(config: MatrixConfig) -> list[tuple[str, str]]:
    """Every enhancer except the backbone alone, and each of its controls; one whose runs all failed leaves a gap."""
    return [
        (label, control)
        for label, choice in config.enhancers.items()
        for control in (NO_CONTROL, *choice.controls)
        if label != config.baseline
    ]


def _above(ours: object, theirs: object) -> float | None:
    if not isinstance(ours, float) or not isinstance(theirs, float) or not theirs:
        return None
    return 100 * (ours / theirs - 1)


def _summary(values: Sequence[object]) -> tuple[float, float]:
    """Mean and deviation over the seeds. One seed has deviation 0; both are NaN with no seed or an undefined value."""
    numbers = [value for value in values if isinstance(value, float)]
    if not numbers or len(numbers) < len(values):
        return math.nan, math.nan
    return fmean(numbers), stdev(numbers) if len(numbers) > 1 else 0.0
