"""Test metrics of several models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from llm4msr.report.sheets import Cell, Sheet
from llm4msr.training.metrics import Scores

UNDEFINED = "undefined"


@dataclass(frozen=True)
class Row:
    """One model: its name and the scores of each of its seeds."""

    name: str
    seeds: Sequence[Scores]


def cell(values: Sequence[float | None]) -> str:
    """The mean over seeds, with the standard deviation if there are several; "undefined" if any value is.

    >>> cell([0.5, 0.7]), cell([0.5]), cell([None])
    ('0.6000 ±0.141', '0.5000', 'undefined')
    """
    defined = [v for v in values if v is not None]
    if len(defined) < len(values) or not defined:
        return UNDEFINED
    if len(defined) == 1:
        return f"{defined[0]:.4f}"
    return f"{mean(defined):.4f} ±{stdev(defined):.3f}"


def score_sheets(rows: Sequence[Row], scenarios: Sequence[str]) -> list[Sheet]:
    """The test AUC and the test log loss: a line per scenario, with its rows and positives, and a column per model.

    The log loss has one more column: that of the best constant.
    """
    parts = [[[*s.scenarios, s.overall] for s in row.seeds] for row in rows]
    auc, loss = [], []
    for place, scenario in enumerate([*scenarios, "all rows"]):
        first = parts[0][0][place]
        label = f"{scenario}\n({first.rows:,} rows, {first.positive:,} positive)"
        auc.append([label, *(cell([seed[place].auc for seed in model]) for model in parts)])
        losses = [cell([seed[place].log_loss for seed in model]) for model in parts]
        loss.append([label, *losses, cell([first.constant])])
    auc.append(["mean over scenarios", *(cell([s.mean_auc for s in row.seeds]) for row in rows)])
    names = ["scenario", *(row.name for row in rows)]
    return [
        Sheet(title, header, [[Cell(text) for text in line] for line in lines])
        for title, header, lines in (
            ("Test AUC", names, auc),
            ("Test log loss", [*names, "the click rate alone"], loss),
        )
    ]
