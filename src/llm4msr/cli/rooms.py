"""The commands of the rooms: prepare, reason, train, evaluate, explain."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llm4msr.cli.base import (
    CommandOption,
    DataArgument,
    DTypeOption,
    EngineOption,
    KnowledgeOption,
    ModelOption,
    app,
    console,
    make_engine,
    say,
    validated,
)
from llm4msr.errors import InputError
from llm4msr.report.terminal import Bars, print_explanation, reasoning_costs

if TYPE_CHECKING:
    from llm4msr.knowledge.reason import Shard


@app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    schema: Annotated[Path | None, typer.Option(help="The schema (TOML) of your own data.")] = None,
    interactions: Annotated[Path | None, typer.Option(help="Impressions: Parquet or CSV.")] = None,
    users: Annotated[Path | None, typer.Option(help="One row a user: Parquet or CSV.")] = None,
    items: Annotated[Path | None, typer.Option(help="One row an item: Parquet or CSV.")] = None,
    positives: Annotated[Path | None, typer.Option(help="A history wider than the positive impressions.")] = None,
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
    max_rejected: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The share of rows that may be set aside.")
    ] = 0.05,
    overwrite: Annotated[bool, typer.Option(help="Replace a prepared folder.")] = False,
) -> None:
    """Check raw logs, split them by time and encode them."""
    from llm4msr.data.negatives import Negatives
    from llm4msr.data.prepare import prepare as run_prepare
    from llm4msr.data.sources import find_source, read_source
    from llm4msr.data.sources.frames import from_frames
    from llm4msr.schema import Schema
    from llm4msr.training.settings import parse_assignment

    ratios = _ratios(split)
    sampling = None
    if negatives is not None:
        raw = {"ratio": negatives, "popularity": popularity, "window": window, "seed": seed}
        sampling = validated(Negatives, raw)
    if source is not None:
        if found := find_source(source).notice:
            console.print(found)
        say(f"reading {source}")
        tables = read_source(source, dict(map(parse_assignment, settings or [])))
    elif schema is None or interactions is None:
        raise InputError("give --schema and --interactions for your own data, or a --source")
    else:
        tables = from_frames(Schema.from_toml(schema), interactions, users=users, items=items, positives=positives)
    data = run_prepare(
        tables, out, ratios=ratios, negatives=sampling, max_rejected=max_rejected, overwrite=overwrite, report=say
    )
    counts = data.manifest["counts"]
    say(f"{counts['rows']} rows, {counts['users']} users, {counts['items']} items, {counts['positives']} positives")
    for name, parts in counts["scenarios"].items():
        shown = ", ".join(f"{part} {c['rows']} rows, {c['positive']} positive" for part, c in parts.items())
        say(f"  {name}: {shown}")
        for part, c in parts.items():
            if c["positive"] in (0, c["rows"]):
                say(f"  warning: {name} has one class or no row in the {part} part: its AUC there is undefined")
    for reason_text, count in counts["rejected"].items():
        say(f"  set aside: {count} x {reason_text} (see {out / 'rejected.parquet'})")


@app.command()
def reason(
    data: DataArgument,
    knowledge: KnowledgeOption,
    model: ModelOption = None,
    dtype: DTypeOption = "bfloat16",
    engine: EngineOption = "auto",
    command: CommandOption = "",
    protocol: Annotated[
        Literal["slices", "period", "times", "train_end", "all"],
        typer.Option(
            help="When users' prompts are made. train_end is the paper's and leaks training labels; all leaks all."
        ),
    ] = "slices",
    slices: Annotated[int, typer.Option(help="Slices of the training period.")] = 4,
    period: Annotated[float, typer.Option(help="Days between snapshots, for the protocol period.")] = 30.0,
    times: Annotated[str, typer.Option(help="Moments with commas (2017-06-01), for the protocol times.")] = "",
    history: Annotated[int, typer.Option(help="Most positives a scenario in a user's prompt (T).")] = 20,
    pooling: Annotated[
        Literal["last_generated", "last_prompt", "mean_prompt", "mean_generated", "closing"],
        typer.Option(help="Which hidden state is a user's vector; last_generated is the paper's."),
    ] = "last_prompt",
    item_pooling: Annotated[
        Literal["last_prompt", "mean_prompt"], typer.Option(help="Which hidden state is an item's vector.")
    ] = "mean_prompt",
    max_new_tokens: Annotated[int, typer.Option(help="Length limit of a text.")] = 160,
    levels: Annotated[str, typer.Option(help="Levels to reason about, with commas.")] = "scenario,user,item",
    templates: Annotated[Path | None, typer.Option(help="Folder with templates of your own.")] = None,
    language: Annotated[Literal["en", "zh"], typer.Option(help="Language of our templates.")] = "en",
    shard: Annotated[
        str | None, typer.Option(help="Ask only part i of n, as in 1/4, into a store file of its own.")
    ] = None,
    ray: Annotated[str | None, typer.Option(help="Run engines on a Ray cluster: its address, or local.")] = None,
    ray_actors: Annotated[int, typer.Option(min=1, help="Engines on the cluster.")] = 1,
    ray_gpus: Annotated[float, typer.Option(min=0.0, help="GPUs of each of them.")] = 0.0,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it would cost; nothing is asked.")] = False,
) -> None:
    """Let the frozen LLM read scenarios, users and items; only what is missing is asked."""
    from llm4msr.data.prepared import PreparedData
    from llm4msr.knowledge.engines.choice import make_engine as make
    from llm4msr.knowledge.engines.ray import RayEngine
    from llm4msr.knowledge.history import LEAKS
    from llm4msr.knowledge.plan import plan as make_plan
    from llm4msr.knowledge.reason import ReasonConfig
    from llm4msr.knowledge.reason import reason as run_reason

    config = validated(
        ReasonConfig,
        {
            "levels": [level.strip() for level in levels.split(",")],
            "snapshots": {
                "protocol": protocol,
                "slices": slices,
                "period_days": period,
                "times": [_moment(text) for text in times.split(",") if text.strip()],
            },
            "language": language,
            "history": history,
            "scenario": {"pooling": "last_generated", "max_new_tokens": max_new_tokens},
            "user": {"pooling": pooling, "max_new_tokens": max_new_tokens},
            "item": {"pooling": item_pooling, "chat": False},
        },
    )
    part = None if shard is None else _shard(shard)
    opened = PreparedData.open(data)
    if ray is None:
        llm = make_engine(model, dtype, engine, command)
    else:
        llm = RayEngine(
            partial(make, engine, model, dtype, command=command), address=ray, actors=ray_actors, gpus=ray_gpus
        )
    if plan:
        console.print(reasoning_costs(make_plan(opened, llm, knowledge, config, templates=templates)))
        return
    with Bars(console) as bars:
        summaries = run_reason(opened, llm, knowledge, config, templates=templates, shard=part, progress=bars.reasoning)
    for s in summaries:
        say(
            f"{s.level}: {s.prompts} prompts, {s.distinct} different, {s.answered} answered now"
            + (f", {s.rejected} set aside (see {knowledge / 'rejected.parquet'})" if s.rejected else "")
        )
    if part is not None:
        say(f"part {shard} is done; when all parts are, run the same command without --shard to complete {knowledge}")
    elif leak := LEAKS.get(protocol):
        say(f"warning: {leak}; reports say so")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="The run's folder.")],
    config: Annotated[Path | None, typer.Argument(help="A run's settings (TOML); see docs/train.md.")] = None,
    data: Annotated[Path | None, typer.Option(help="A folder that `prepare` wrote.")] = None,
    knowledge: Annotated[Path | None, typer.Option(help="A folder that `reason` wrote.")] = None,
    backbone: Annotated[str | None, typer.Option(help="The backbone's name.")] = None,
    enhancer: Annotated[str | None, typer.Option(help="The enhancer's name.")] = None,
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
    with Bars(console) as bars:
        result = train_run(run_config, out, lambda p: bars.training("training", p))
    say(f"best validation at epoch {result.best_epoch}, {result.seconds:.0f} s, {result.parameters} parameters")
    _print_scores(out)


@app.command()
def evaluate(run: Annotated[Path, typer.Argument(help="A folder that `train` wrote.")]) -> None:
    """Score the test part anew with a run's weights."""
    _print_scores(run, anew=True)


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


def _print_scores(run: Path, *, anew: bool = False) -> None:
    from llm4msr.data.prepared import PreparedData
    from llm4msr.report.tables import Row, grids, rich_table
    from llm4msr.training.run import evaluate_run, read_result, run_config

    scores = evaluate_run(run) if anew else read_result(run).scores
    config = run_config(run)
    data = PreparedData.open(config.data, check=False)
    name = f"{config.model.backbone.name} + {config.model.enhancer.name}"
    for grid in grids([Row(name, [scores])], [s.title for s in data.schema.scenarios]):
        console.print(rich_table(grid))
    leaks = read_result(run).leaks
    if leaks:
        say(f"note: {leaks}")
    say(f"everything lies in {run}")


def _ratios(text: str) -> tuple[float, float, float]:
    parts = text.split(":")
    try:
        first, second, third = (float(p) for p in parts)
    except ValueError:
        raise InputError(f"--split {text}: expected three numbers, as in 8:1:1") from None
    return first, second, third


def _moment(text: str) -> int:
    """An ISO date or time, taken as UTC where it names no zone, in microseconds since 1970."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InputError(f"--times {text}: expected moments as in 2017-06-01 or 2017-06-01T12:00") from None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1e6)


def _shard(text: str) -> Shard:
    from llm4msr.knowledge.reason import Shard

    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise InputError(f"--shard {text}: expected part i of n, as in 1/4")
    return Shard(int(number) - 1, int(of))
