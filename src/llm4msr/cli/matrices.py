"""Shared parts of the matrix commands: options, the cost of a matrix, and the display of a case study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm4msr.cli.base import console, print_sheet, say
from llm4msr.report.terminal import print_explanation, print_text

if TYPE_CHECKING:
    from llm4msr.experiments.case_study import CaseStudy
    from llm4msr.experiments.config import MatrixConfig

ConfigArgument = Annotated[Path, typer.Argument(help="The matrix (TOML); see docs/experiments.md.")]
OutOption = Annotated[Path, typer.Option(help="The folder of its runs, results and tables.")]
JobsOption = Annotated[int, typer.Option(min=1, help="Cells run at once, each with its share of the cores.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say how many runs there are, and how long.")]
EnhancerOption = Annotated[
    str | None,
    typer.Option("--enhancer", help="The label of the llm4msr enhancer.", show_default="the first"),
]


def cost(matrix: MatrixConfig, out: Path, jobs: int, *, asked: bool, timed: bool) -> str:
    """Say how many runs a matrix has and, if `timed`, about how long the unfinished ones take.

    Without `asked`, the LLM still has to make knowledge for the matrix, and no run can be recognised as finished yet.
    Raises `InputError` for a cell that cannot be run.
    """
    from llm4msr.experiments.benchmark import plan
    from llm4msr.experiments.cells import cells_of
    from llm4msr.experiments.estimate import seconds_of

    planned = plan(matrix, out)
    done = planned.done if asked else 0
    told = f"{planned.cells} cells, {planned.runs} runs, "
    told += f"{done} of them finished before" if asked else "after the LLM was asked"
    if timed:
        seconds, failed = seconds_of(cells_of(matrix), matrix, jobs, say)
        left = seconds * (1 - done / planned.runs)
        shown = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        told += f"; at most about {shown}, and early stopping shortens it"
        told += "".join(f"; will fail: {reason}" for reason in failed)
    return told


def print_study(study: CaseStudy) -> None:
    """Print a case study."""
    for title, text in study.scenarios.items():
        print_text(console, title, text)
    print_explanation(console, study.explanation)
    print_sheet(study.scores)
