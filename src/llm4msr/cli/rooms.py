"""The commands prepare, train, evaluate and explain; `reason` has a file of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm4msr.cli.base import (
    CommandOption,
    DTypeOption,
    EngineOption,
    KnowledgeOption,
    ModelOption,
    MovedDataOption,
    MovedKnowledgeOption,
    app,
    console,
    make_engine,
    print_sheet,
    say,
    validated,
)
from llm4msr.errors import InputError
from llm4msr.report.terminal import Bars, print_explanation

if TYPE_CHECKING:
    import numpy as np

    from llm4msr.data.prepared import PreparedData
    from llm4msr.training.config import RunConfig

_LONG_AGO = "1990-01-01"
"""For a log that begins before this day, `prepare` warns that the time unit may be wrong."""


@app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    schema: Annotated[Path | None, typer.Option(help="The schema (TOML) of your own data.")] = None,
    interactions: Annotated[Path | None, typer.Option(help="Impressions: Parquet or CSV.")] = None,
    users: Annotated[Path | None, typer.Option(help="One row a user: Parquet or CSV.")] = None,
    items: Annotated[Path | None, typer.Option(help="One row an item: Parquet or CSV.")] = None,
    positives: Annotated[Path | None, typer.Option(help="A history wider than the positive impressions.")] = None,
    events: Annotated[
        Path | None, typer.Option(help="More positives to add to the history, as `llm4msr events` writes them.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="A known data set, in place of your own files.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the source, as in --set folder=PATH (repeat it).")
    ] = None,
    negatives: Annotated[
        int | None, typer.Option(min=1, help="Sample this many negatives a positive; see docs/data.md.")
    ] = None,
    popularity: Annotated[float, typer.Option(help="Power of the local popularity in that sampling.")] = 1.0,
    window: Annotated[int, typer.Option(help="The nearest positives of the scenario that it draws from.")] = 2000,
    seed: Annotated[int, typer.Option(help="Its seed.")] = 0,
    split: Annotated[str, typer.Option(help="Shares of training, validation and test, by time.")] = "8:1:1",
    history_share: Annotated[
        float, typer.Option(help="The share of rows, the first by time, that is history alone and never trained on.")
    ] = 0.0,
    max_rejected: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The share of rows that may be set aside.")
    ] = 0.05,
    overwrite: Annotated[bool, typer.Option(help="Replace a prepared folder.")] = False,
) -> None:
    """Check raw logs, split them by time and encode them."""
    from llm4msr.allocation import keep_freed_memory
    from llm4msr.data.negatives import Negatives
    from llm4msr.data.prepare import prepare as run_prepare
    from llm4msr.data.sources import find_source, read_source
    from llm4msr.data.sources.frames import from_frames
    from llm4msr.schema import Schema
    from llm4msr.training.metrics import tells
    from llm4msr.training.settings import parse_assignment

    keep_freed_memory()
    ratios = _ratios(split)
    sampling = None
    if negatives is not None:
        raw = {"ratio": negatives, "popularity": popularity, "window": window, "seed": seed}
        sampling = validated(Negatives, raw)
    own = {"--schema": schema, "--interactions": interactions, "--users": users, "--items": items}
    own |= {"--positives": positives, "--events": events}
    if source is not None and (given := [name for name, value in own.items() if value is not None]):
        raise InputError(f"{given[0]}: is for data of your own, and --source {source} reads its own files")
    if source is None and settings:
        raise InputError(f"--set {settings[0]}: is a setting of a --source, and none is named")
    if source is not None:
        if found := find_source(source).notice:
            console.print(found)
        say(f"reading {source}")
        tables = read_source(source, dict(map(parse_assignment, settings or [])))
    elif schema is None or interactions is None:
        raise InputError("give --schema and --interactions for your own data, or a --source")
    else:
        tables = from_frames(
            Schema.from_toml(schema), interactions, users=users, items=items, positives=positives, events=events
        )
    data = run_prepare(
        tables,
        out,
        ratios=ratios,
        history_share=history_share,
        negatives=sampling,
        max_rejected=max_rejected,
        overwrite=overwrite,
        report=say,
    )
    counts = data.manifest["counts"]
    _tell_of_times(data)
    say(f"{counts['rows']} rows, {counts['users']} users, {counts['items']} items, {counts['positives']} positives")
    for name, parts in counts["scenarios"].items():
        shown = ", ".join(f"{part} {c['rows']} rows, {c['positive']} positive" for part, c in parts.items())
        say(f"  {name}: {shown}")
        for part, c in parts.items():
            if c["positive"] in (0, c["rows"]):
                say(f"  warning: {name} has one class or no row in the {part} part: its AUC there is undefined")
            elif part != "train" and not tells(c["rows"], c["positive"]):
                say(f"  warning: {name} has few rows of a class in the {part} part: its AUC there says little")
    for reason_text, count in counts["rejected"].items():
        say(f"  set aside: {count} x {reason_text} (see {out / 'rejected.parquet'})")


def _tell_of_times(data: PreparedData) -> None:
    """Print when the log begins and ends and when its parts begin, so that a wrong time unit is noticed."""
    import numpy as np

    split = data.split
    first, last, valid, test = (
        np.datetime64(int(time), "us") for time in (data.time[0], data.time[-1], split.valid_time, split.test_time)
    )
    told = f"from {_day(first)} to {_day(last)}"
    for name, begins, rows in (
        ("validation", valid, split.test - split.valid),
        ("test", test, split.rows - split.test),
    ):
        if rows:
            told += f", {name} from {_day(begins)}"
        else:
            say(f"warning: no row is in the {name} part, and training needs some; see --split")
    say(told)
    if first < np.datetime64(_LONG_AGO) or last > np.datetime64("now") + np.timedelta64(1, "D"):
        say("warning: is the schema's time_unit right?")


def _day(time: np.datetime64) -> str:
    return str(time.astype("datetime64[D]"))


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
    from llm4msr.training.settings import parse_assignment, read_settings

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
    dtype: DTypeOption = "bfloat16",
    engine: EngineOption = "auto",
    command: CommandOption = "",
) -> None:
    """Show a user's history, prompt and text, and how the vector was taken."""
    from llm4msr.data.prepared import PreparedData
    from llm4msr.knowledge.folder import KnowledgeFolder
    from llm4msr.report.explain import explain_user

    opened = PreparedData.open(data)
    folder = KnowledgeFolder.open(knowledge, opened)
    print_explanation(console, explain_user(opened, folder, user, lambda: make_engine(model, dtype, engine, command)))


def _print_scores(run: Path, config: RunConfig | None = None) -> None:
    """Print the scores that a run ended with or, with a `config`, the scores of a new evaluation."""
    from llm4msr.data.prepared import PreparedData
    from llm4msr.report.tables import Row, score_sheets
    from llm4msr.training.identity import run_config
    from llm4msr.training.run import evaluate_run, read_result

    result = read_result(run)  # first, as an unfinished run has none
    scores = result.scores if config is None else evaluate_run(run, config)
    config = config or run_config(run)
    data = PreparedData.open(config.data, check=False)
    name = f"{config.model.backbone.name} + {config.model.enhancer.name}"
    for sheet in score_sheets([Row(name, [scores])], [s.title for s in data.schema.scenarios]):
        print_sheet(sheet)
    if result.leaks:
        say(f"note: {result.leaks}")
    say(f"everything lies in {run}")


def _ratios(text: str) -> tuple[float, float, float]:
    parts = text.split(":")
    try:
        first, second, third = (float(p) for p in parts)
    except ValueError:
        raise InputError(f"--split {text}: expected three numbers, as in 8:1:1") from None
    return first, second, third
