"""Tables for the terminal and for Markdown: test metrics of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from rich import box
from rich.markup import escape
from rich.table import Table

from llm4msr.report.sheets import piped
from llm4msr.training.metrics import Scores

UNDEFINED = "undefined"


@dataclass(frozen=True)
class Row:
    """One model: its name and the scores of each of its seeds."""

    name: str
    seeds: Sequence[Scores]


def cell(values: Sequence[float | None]) -> str:
    """Mean over seeds, with the standard deviation where there are several; "undefined" where any is.

    >>> cell([0.5, 0.7]), cell([0.5]), cell([None])
    ('0.6000 ±0.141', '0.5000', 'undefined')
    """
    defined = [v for v in values if v is not None]
    if len(defined) < len(values) or not defined:
        return UNDEFINED
    if len(defined) == 1:
        return f"{defined[0]:.4f}"
    return f"{mean(defined):.4f} ±{stdev(defined):.3f}"


@dataclass(frozen=True)
class Grid:
    """A metric with a line a scenario, then all rows, and a column a model. `counts` are test rows and positives."""

    title: str
    models: Sequence[str]
    lines: Sequence[tuple[str, str, Sequence[str]]]


def grids(rows: Sequence[Row], scenarios: Sequence[str]) -> list[Grid]:
    """The test AUC and the test log loss of each model, for each scenario and over all rows."""
    names = [row.name for row in rows]
    parts = [[[*s.scenarios, s.overall] for s in row.seeds] for row in rows]
    auc, loss = [], []
    for place, label in enumerate([*scenarios, "all rows"]):
        first = parts[0][0][place]
        counts = f"{first.rows:,} rows, {first.positive:,} positive"
        auc.append((label, counts, [cell([seed[place].auc for seed in model]) for model in parts]))
        loss.append((label, counts, [cell([seed[place].log_loss for seed in model]) for model in parts]))
    means = [cell([s.mean_auc for s in row.seeds]) for row in rows]
    auc.append(("mean over scenarios", "", means))
    return [Grid("Test AUC", names, auc), Grid("Test log loss", names, loss)]


def rich_table(grid: Grid) -> Table:
    """A grid for the terminal."""
    table = Table(title=grid.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in grid.models:
        table.add_column(escape(name), justify="right", max_width=15)
    for label, counts, cells in grid.lines:
        table.add_row(f"{escape(label)}\n[dim]{counts}[/]" if counts else escape(label), *cells)
    return table


def markdown(grid: Grid) -> str:
    """A grid as a Markdown table."""
    lines = [
        [grid.title, "test rows", *grid.models],
        ["---", "---", *["---:"] * len(grid.models)],
        *([label, counts, *cells] for label, counts, cells in grid.lines),
    ]
    return "\n".join("| " + " | ".join(map(piped, line)) + " |" for line in lines) + "\n"
