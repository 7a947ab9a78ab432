"""The commands train, evaluate and explain."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm4msr.cli.base import (
    CommandOption,
    KnowledgeOption,
    ModelOption,
    MovedDataOption,
    MovedKnowledgeOption,
    app,
    console,
    known_engine,
    print_sheet,
    say,
)
from llm4msr.report.terminal import Bars, print_explanation

if TYPE_CHECKING:
    from llm4msr.training.config import RunConfig


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="The run's folder.")],
    config: Annotated[Path | None, typer.Argument(help="A run's settings (TOML); see docs/train.md.")] = None,
    data: Annotated[Path | None, typer.Option(help="A folder that `prepare` wrote.")] = None,
    knowledge: Annotated[Path | None, typer.Option(help="A folder that `reason` wrote.")] = None,
    backbone: Annotated[str | None, typer.Option(help="The backbone's name.", show_default="star")] = None,
    enhancer: Annotated[str | None, typer.Option(help="The enhancer's name.", show_default="none")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, as in --set train.seed=1 (repeat it).")
    ] = None,
) -> None:
    """Train a model; an interrupted run goes on where it stopped when the command is given again."""
    from llm4msr.training.run import train_run
    from llm4msr.training.settings import read_settings
    from llm4msr.validation import parse_assignment

    options = {
        "data": data,
        "knowledge_folder": knowledge,
        "model.backbone.name": backbone,
        "model.enhancer.name": enhancer,
    }
    given = [(path, str(value)) for path, value in options.items() if value is not None]
    run_config = read_settings(config, [*given, *map(parse_assignment, settings or [])])
    if run_config.knowledge_folder is not None and not run_config.needs:
        say(f"warning: the enhancer {run_config.model.enhancer.name!r} reads no knowledge; --enhancer llm4msr does")
    before = (out / "result.json").is_file()
    with Bars(console) as bars:
        result = train_run(run_config, out, lambda p: bars.training("training", p))
    if os.environ.get("RANK", "0") != "0":  # of several processes that train together, only the first prints
        return
    if before:
        say(f"{out}: this run was finished before; nothing was trained")
    say(f"best validation at epoch {result.best_epoch}, {result.seconds:.0f} s, {result.parameters} parameters")
    _print_scores(out)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that `train` wrote.")],
    data: MovedDataOption = None,
    knowledge: MovedKnowledgeOption = None,
) -> None:
    """Score the test part anew with a run's weights."""
    from llm4msr.training.identity import run_config

    _print_scores(run, run_config(run, data, knowledge))


@app.command()
def explain(
    user: Annotated[str, typer.Argument(help="The user's id.")],
    data: Annotated[Path, typer.Option(help="A folder that `prepare` wrote.")],
    knowledge: KnowledgeOption,
    model: ModelOption = None,
    command: CommandOption = "",
) -> None:
    """Show a user's history, prompt and text, and how the vector was taken."""
    from llm4msr.data.prepared import PreparedData
    from llm4msr.knowledge.folder import KnowledgeFolder
    from llm4msr.report.explain import explain_user

    opened = PreparedData.open(data)
    folder = KnowledgeFolder.open(knowledge, opened)
    print_explanation(console, explain_user(opened, folder, user, known_engine(model, command)))


def _print_scores(run: Path, config: RunConfig | None = None) -> None:
    """Print the scores that a run ended with or, with a `config`, the scores of a new evaluation."""
    from llm4msr.data.prepared import PreparedData
    from llm4msr.report.tables import Row, score_sheets
    from llm4msr.training.identity import run_config
    from llm4msr.training.run import evaluate_run, read_result, validation_losses

    result = read_result(run)  # first, as an unfinished run has none
    scores = result.scores if config is None else evaluate_run(run, config)
    config = config or run_config(run)
    data = PreparedData.open(config.data, check=False)
    name = f"{config.model.backbone.name} + {config.model.enhancer.name}"
    for sheet in score_sheets([Row(name, [scores])], [s.title for s in data.schema.scenarios]):
        print_sheet(sheet)
    loss, constant = scores.overall.log_loss, scores.overall.constant
    if loss is not None and constant is not None and loss > constant:
        ranks = scores.mean_auc is not None and scores.mean_auc > scores.chance
        losses = validation_losses(run)
        say(
            "warning: the log loss is above that of the click rate alone, so the scores "
            + ("rank, but are no good probabilities; " if ranks else "are worth nothing; ")
            + (
                "it was still falling at the end, so try more epochs, or smaller batches"
                if len(losses) > 1 and losses[-1] == min(losses)
                else "try a lower learning rate or fewer epochs"
            )
        )
    if result.leaks:
        say(f"note: {result.leaks}")
    say(f"everything lies in {run}")
