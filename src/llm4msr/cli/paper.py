"""The command that makes every table and figure of the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llm4msr.cli.base import (
    CommandOption,
    DTypeOption,
    EngineOption,
    ModelOption,
    app,
    console,
    make_engine,
    print_sheet,
    say,
    whole_numbers,
)
from llm4msr.cli.studies import ConfigArgument, DryRunOption, EnhancerOption, JobsOption, OutOption
from llm4msr.errors import InputError, nearest
from llm4msr.report.terminal import Bars, print_explanation, print_text

if TYPE_CHECKING:
    from pathlib import Path

    from llm4msr.experiments.paper import Paper
    from llm4msr.experiments.sections import Section


@app.command()
def paper(
    config: ConfigArgument,
    out: OutOption,
    only: Annotated[
        str, typer.Option(help="Some parts, with commas: table-1 to table-4, figure-3, figure-4a, figure-4b, figure-5.")
    ] = "",
    enhancer: EnhancerOption = None,
    backbone: Annotated[
        str | None, typer.Option(help="Of Table 3 and the figures. [default: star, or else the matrix's first]")
    ] = None,
    layers: Annotated[str, typer.Option(help="The values of K in Figure 4(b).")] = "1,2,3,4",
    history: Annotated[
        str, typer.Option(help="The values of T in Figure 4(a). [default: a quarter, a half, all of the knowledge's]")
    ] = "",
    user: Annotated[str | None, typer.Option(help="The user of Figure 5. [default: one of many scenarios]")] = None,
    jobs: JobsOption = 1,
    dry_run: DryRunOption = False,
    model: ModelOption = None,
    dtype: DTypeOption = "bfloat16",
    engine: EngineOption = "auto",
    command: CommandOption = "",
) -> None:
    """Make every table and figure of the paper of one matrix: paper.md, paper.tex and images."""
    from llm4msr.experiments.config import read_matrix
    from llm4msr.experiments.paper import PARTS, Paper, PaperConfig

    parts = tuple(part.strip() for part in only.split(",")) if only else PARTS
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"--only {only}: there is no part {unknown[0]!r}; {nearest(unknown[0], list(PARTS))}")
    wanted = PaperConfig(
        parts=parts,
        label=enhancer,
        backbone=backbone,
        layers=whole_numbers("--layers", layers),
        history=whole_numbers("--history", history) if history else (),
        user=user,
    )
    with Bars(console) as bars:
        made = Paper(
            read_matrix(config),
            wanted,
            out,
            engine=lambda: make_engine(model, dtype, engine, command),
            jobs=jobs,
            say=say,
            progress=bars.reasoning,
        )
        _tell_of_costs(made, out, jobs, dry_run=dry_run)
        if dry_run:
            return
        try:
            for section in made.sections():
                _show(section)
        except KeyboardInterrupt:
            say("stopped; give the same command again to go on from here")
            raise
    say(f"paper.md, paper.tex and the images lie in {out}")


def _tell_of_costs(made: Paper, out: Path, jobs: int, *, dry_run: bool) -> None:
    from llm4msr.experiments.benchmark import plan
    from llm4msr.experiments.cells import cells_of
    from llm4msr.experiments.estimate import seconds_of

    for part, matrix in made.matrices().items():
        planned = plan(matrix, out)
        told = f"{part}: {planned.cells} cells, {planned.runs} runs"
        if part == "figure-4a":  # whose knowledge is not made yet, so that no run can be recognised
            say(f"{told}, after the LLM was asked for each T")
            continue
        told += f", {planned.done} of them finished before"
        if dry_run:
            left = seconds_of(cells_of(matrix), matrix, jobs) * (1 - planned.done / planned.runs)
            told += f", at most about {left / 60:.0f} min of training for the others"
        say(told)
    if dry_run:
        say("parts share runs, and early stopping shortens them")


def _show(section: Section) -> None:
    console.rule(section.title)
    if section.remark:
        say(section.remark)
    if section.study is not None:
        for title, text in section.study.scenarios.items():
            print_text(console, title, text)
        print_explanation(console, section.study.explanation)
    for sheet in section.sheets:
        print_sheet(sheet)
