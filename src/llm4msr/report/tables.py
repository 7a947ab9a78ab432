"""Tables for the terminal and for Markdown: test metrics of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from rich.table import Table

from llm4msr.training.metrics import Score, Scores

UNDEFINED = "undefined"


@dataclass(frozen=True)
class Row:
    """One model: its name and the scores of each of its seeds. `note` is shown below the table."""

    name: str
    seeds: Sequence[Scores]
    note: str = ""


def cell(values: Sequence[float | None]) -> str:
    """Mean over seeds, with the standard deviation where there are several; "undefined" where any is.

    >>> cell([0.5, 0.7]), cell([0.5]), cell([None])
    ('0.6000 ±0.1414', '0.5000', 'undefined')
    """
    defined = [v for v in values if v is not None]
    if len(defined) < len(values) or not defined:
        return UNDEFINED
    if len(defined) == 1:
        return f"{defined[0]:.4f}"
    return f"{mean(defined):.4f} ±{stdev(defined):.4f}"


def _parts(scores: Scores) -> list[Score]:
    return [*scores.scenarios, scores.overall]


def grid(rows: Sequence[Row], scenarios: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: the test AUC and log loss of each scenario and overall, then the mean AUC over scenarios."""
    parts = [*scenarios, "all rows"]
    heads = ["model", *(f"AUC {p}" for p in parts), "mean AUC", *(f"log loss {p}" for p in parts)]
    cells = []
    for row in rows:
        columns = list(zip(*(_parts(s) for s in row.seeds), strict=True))
        cells.append(
            [
                row.name,
                *(cell([s.auc for s in part]) for part in columns),
                cell([s.mean_auc for s in row.seeds]),
                *(cell([s.log_loss for s in part]) for part in columns),
            ]
        )
    counts = ["test rows (positive)"] + [f"{s.rows} ({s.positive})" for s in _parts(rows[0].seeds[0])]
    cells.append([*counts, "", *[""] * len(parts)])
    return heads, cells


def rich_tables(rows: Sequence[Row], scenarios: Sequence[str]) -> list[Table]:
    """The grid for the terminal, AUC and log loss one below the other."""
    heads, cells = grid(rows, scenarios)
    cut = 3 + len(scenarios)
    tables = []
    for title, columns, body in (
        ("Test AUC", [0, *range(1, cut)], cells),
        ("Test log loss", [0, *range(cut, len(heads))], cells[:-1]),
    ):
        table = Table(title=title, title_justify="left")
        for place in columns:
            name = heads[place].removeprefix("AUC ").removeprefix("log loss ")
            table.add_column(name, justify="left" if place == 0 else "right", no_wrap=place > 0)
        for line in body:
            table.add_row(*(line[place] for place in columns))
        tables.append(table)
    return tables


def markdown(rows: Sequence[Row], scenarios: Sequence[str]) -> str:
    """The grid as a Markdown table."""
    heads, cells = grid(rows, scenarios)
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
