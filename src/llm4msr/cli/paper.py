"""The command that makes every table and figure of the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llm4msr.cli.base import (
    CommandOption,
    ModelOption,
    app,
    console,
    known_engine,
    print_sheet,
    say,
    whole_numbers,
)
from llm4msr.cli.matrices import (
    ConfigArgument,
    DryRunOption,
    EnhancerOption,
    JobsOption,
    OutOption,
    cost,
    print_study,
)
from llm4msr.errors import InputError, nearest
from llm4msr.report.terminal import Bars

if TYPE_CHECKING:
    from llm4msr.experiments.sections import Section


@app.command()
def paper(
    config: ConfigArgument,
    out: OutOption,
    only: Annotated[
        str,
        typer.Option(
            help="Only these parts, separated by commas: table-1 to table-4, figure-3, figure-4a, figure-4b, figure-5."
        ),
    ] = "",
    enhancer: EnhancerOption = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="The backbone of Table 3 and the figures.", show_default="star, or else the matrix's first"),
    ] = None,
    layers: Annotated[str, typer.Option(help="The values of K in Figure 4(b).")] = "1,2,3,4",
    history: Annotated[
        str,
        typer.Option(help="The values of T in Figure 4(a).", show_default="a quarter, a half, all of the knowledge's"),
    ] = "",
    user: Annotated[
        str | None, typer.Option(help="The user of Figure 5.", show_default="one with positives in many scenarios")
    ] = None,
    jobs: JobsOption = 1,
    dry_run: DryRunOption = False,
    model: ModelOption = None,
    command: CommandOption = "",
) -> None:
    """Make every table and figure of the paper from one matrix: paper.md, paper.tex and images."""
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
            engine=known_engine(model, command),
            jobs=jobs,
            say=say,
            reasoning=bars.reasoning,
            training=bars.training,
        )
        for part, matrix in made.matrices().items():
            say(f"{part}: {cost(matrix, out, jobs, asked=part != 'figure-4a', timed=dry_run)}")
        if dry_run:
            say("a run that two parts have is counted for both")
            return
        for section in made.sections():
            _show(section)
    say(f"paper.md, paper.tex and the images lie in {out}")
    if made.failed:
        say("some runs or parts failed; paper.md says which, and the same command tries them again")
        raise typer.Exit(1)


def _show(section: Section) -> None:
    console.rule(section.title)
    if section.remark:
        say(section.remark)
    if section.study is not None:
        print_study(section.study)  # this includes its table
        return
    for sheet in section.sheets:
        print_sheet(sheet)
