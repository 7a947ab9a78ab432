"""The commands that run experiments: demo, benchmark, ablation, sweep, efficiency, case-study, audit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llm4msr import __version__
from llm4msr.cli.base import (
    CommandOption,
    DataArgument,
    KnowledgeOption,
    ModelOption,
    MovedDataOption,
    MovedKnowledgeOption,
    app,
    console,
    known_engine,
    make_engine,
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
from llm4msr.errors import InputError
from llm4msr.folders import write_text_atomically
from llm4msr.report.terminal import Bars, print_explanation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm4msr.experiments.config import MatrixConfig
    from llm4msr.report.sheets import Sheet


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to work in.")] = Path("demo"),
    full: Annotated[bool, typer.Option("--full", help="All households instead of 200.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each model, with different seeds.")] = 3,
) -> None:
    """Run the whole way on real data: from raw logs to an AUC table, with and without knowledge."""
    from llm4msr.data.sources.completejourney import NOTICE
    from llm4msr.experiments.demo import LEGEND, DemoSettings, Listener, run_demo
    from llm4msr.report.tables import score_sheets

    began = time.perf_counter()
    settings = DemoSettings.full(seeds) if full else DemoSettings(seeds=seeds)
    with Bars(console) as bars:
        listener = Listener(say=say, reasoning=bars.reasoning, training=bars.training)
        folder = out / ("full" if full else "households-200")
        result = run_demo(folder, settings, lambda: make_engine(None, "bfloat16", "auto"), listener)
    print_explanation(console, result.explanation)
    tables = score_sheets(result.rows, result.scenarios)
    for sheet in tables:
        print_sheet(sheet)
    notes = f"{LEGEND} Mean and standard deviation over {seeds} seed(s), {settings.backbone} backbone. {NOTICE}"
    command = f"llm4msr demo{' --full' if full else ''} --seeds {seeds}"
    text = "\n".join(sheet.markdown() for sheet in tables)
    write_text_atomically(folder / "table.md", f"`{command}`, version {__version__}.\n\n{text}\n{notes}\n")
    console.print(notes, style="dim")
    console.print(f"See it in a browser: llm4msr serve {result.bundle}, then open http://127.0.0.1:8000/")
    console.print(f"Everything lies in {folder}: data, knowledge, runs, table.md. {time.perf_counter() - began:.0f} s.")


@app.command()
def benchmark(config: ConfigArgument, out: OutOption, jobs: JobsOption = 1, dry_run: DryRunOption = False) -> None:
    """Run a matrix of data sets, backbones, enhancers and seeds; its tables (the paper's Table 2) are written too."""
    from llm4msr.experiments.config import read_matrix

    _run(read_matrix(config), out, jobs, dry_run=dry_run)


@app.command()
def ablation(
    config: ConfigArgument,
    out: OutOption,
    enhancer: EnhancerOption = None,
    jobs: JobsOption = 1,
    dry_run: DryRunOption = False,
) -> None:
    """Run the variants of the paper's Figure 3: level and placement of the meta layers."""
    from llm4msr.experiments import variants
    from llm4msr.experiments.config import read_matrix

    _run(variants.ablation(read_matrix(config), enhancer), out, jobs, dry_run=dry_run)


@app.command()
def sweep(
    config: ConfigArgument,
    out: OutOption,
    over: Annotated[
        Literal["layers", "history"], typer.Option(help="layers is K; history is T, which reasons for each value.")
    ],
    values: Annotated[str, typer.Option(help="The values, separated by commas.")],
    enhancer: EnhancerOption = None,
    jobs: JobsOption = 1,
    dry_run: DryRunOption = False,
    model: ModelOption = None,
    command: CommandOption = "",
) -> None:
    """Sweep one setting, as in the paper's Figure 4."""
    from llm4msr.experiments import variants
    from llm4msr.experiments.config import read_matrix

    matrix, numbers = read_matrix(config), whole_numbers("--values", values)
    if over == "layers":
        matrix = variants.sweep_layers(matrix, enhancer, numbers)
    else:
        with Bars(console) as bars:
            llm = None if dry_run else known_engine(model, command)
            matrix = variants.sweep_history(matrix, enhancer, numbers, out, llm, bars.reasoning)
    _run(matrix, out, jobs, dry_run=dry_run, asked=over == "layers" or not dry_run)


@app.command()
def efficiency(
    config: ConfigArgument,
    out: OutOption,
    batches: Annotated[int, typer.Option(min=1, help="Batches a round.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the models take turns.")] = 5,
) -> None:
    """Time training and inference of each model of a matrix side by side (the paper's Table 3)."""
    from llm4msr.experiments.benchmark import claim
    from llm4msr.experiments.config import read_matrix
    from llm4msr.experiments.efficiency import efficiency as measure

    claim(out)
    _show(measure(read_matrix(config), batches=batches, rounds=rounds, say=say), out, "efficiency")


@app.command(name="case-study")
def case_study(
    run: Annotated[Path, typer.Argument(help="A finished run whose enhancer reads knowledge of users.")],
    user: Annotated[str, typer.Argument(help="The user's id.")],
    data: MovedDataOption = None,
    knowledge: MovedKnowledgeOption = None,
    model: ModelOption = None,
    command: CommandOption = "",
) -> None:
    """Show the LLM's texts on scenarios and a user, and how this changes the user's scores (the paper's Figure 5)."""
    from llm4msr.experiments.case_study import case_study as study
    from llm4msr.training.identity import run_config

    config = run_config(run, data, knowledge)
    found = study(run, user, known_engine(model, command), config=config)
    print_study(found)


@app.command()
def audit(
    data: DataArgument,
    knowledge: KnowledgeOption,
    out: Annotated[Path | None, typer.Option(help="Where to write the tables as Markdown.")] = None,
    half_life_days: Annotated[float, typer.Option(help="Half-life of the composed states that are checked.")] = 30.0,
) -> None:
    """Check that no row knows anything from after its time, and measure what each protocol leaks.

    The last table is what counting alone predicts: what a model must beat.
    """
    from llm4msr.data.prepared import PreparedData
    from llm4msr.experiments.audit import audit as check
    from llm4msr.experiments.audit import checks_sheet
    from llm4msr.experiments.counting import counting_sheet
    from llm4msr.experiments.probes import probes, probes_sheet
    from llm4msr.knowledge.config import KnowledgeConfig
    from llm4msr.knowledge.folder import KnowledgeFolder

    opened = PreparedData.open(data)
    folder = KnowledgeFolder.open(knowledge, opened)
    config = KnowledgeConfig.checked({"half_life_days": half_life_days})
    say("planting markers")
    checks = check(opened, config, snapshots=folder.config.snapshots)
    say("probing each protocol")
    sheets = [checks_sheet(checks), probes_sheet(probes(opened, folder, config)), counting_sheet(opened)]
    for sheet in sheets:
        print_sheet(sheet)
    if out is not None:
        write_text_atomically(out, "\n".join(sheet.markdown() for sheet in sheets))
    failed = [c.name for c in checks if not c.held]
    if failed:
        raise InputError(f"{data}: the audit failed: {'; '.join(failed)}")


def _run(matrix: MatrixConfig, out: Path, jobs: int, *, dry_run: bool, asked: bool = True) -> None:
    from llm4msr.experiments.benchmark import finished_runs, run_matrix
    from llm4msr.experiments.settings_table import chosen
    from llm4msr.experiments.tables import sheets

    say(cost(matrix, out, jobs, asked=asked, timed=dry_run))
    if dry_run:
        return
    with Bars(console) as bars:
        results = run_matrix(matrix, out, jobs=jobs, say=say, progress=bars.training)
    _show([*sheets(results, matrix, out), *chosen(matrix, finished_runs(matrix, out))], out)
    failed = results.filter(results["status"] == "failed").height
    say(f"{results.height} runs, {failed} failed; results.parquet, tables.md and tables.tex lie in {out}")
    if failed:
        raise typer.Exit(1)


def _show(sheets: Sequence[Sheet], out: Path, name: str = "tables") -> None:
    """Print tables and write them as Markdown and LaTeX."""
    for sheet in sheets:
        print_sheet(sheet)
    write_text_atomically(out / f"{name}.md", "\n".join(sheet.markdown() for sheet in sheets))
    write_text_atomically(out / f"{name}.tex", "\n".join(sheet.latex() for sheet in sheets))
