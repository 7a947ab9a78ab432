"""The command line: thin, over the rooms. Errors of input are one message and exit code 2."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.markup import escape

from llm4msr.errors import InputError

app = typer.Typer(
    help="Multi-scenario click-through-rate prediction, helped by what a frozen LLM knows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()

DataArgument = Annotated[Path, typer.Argument(help="A folder that `prepare` wrote.")]
KnowledgeOption = Annotated[Path, typer.Option("--knowledge", help="The folder of knowledge.")]
ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Folder of a causal LM (safetensors). [default: the embedded SmolLM2]")
]
DTypeOption = Annotated[Literal["bfloat16", "float32"], typer.Option(help="Number format of the LLM.")]


@app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    schema: Annotated[Path | None, typer.Option(help="The schema (TOML) of your own data.")] = None,
    interactions: Annotated[Path | None, typer.Option(help="Impressions: Parquet or CSV.")] = None,
    users: Annotated[Path | None, typer.Option(help="One row a user: Parquet or CSV.")] = None,
    items: Annotated[Path | None, typer.Option(help="One row an item: Parquet or CSV.")] = None,
    positives: Annotated[Path | None, typer.Option(help="A history wider than the positive impressions.")] = None,
    source: Annotated[
        Literal["completejourney"] | None, typer.Option(help="A known data set, in place of your own files.")
    ] = None,
    households: Annotated[int | None, typer.Option(help="completejourney: keep this many households.")] = None,
    negatives: Annotated[int, typer.Option(help="completejourney: exposures sampled a visit.")] = 24,
    seed: Annotated[int, typer.Option(help="completejourney: seed of the sampling.")] = 0,
    split: Annotated[str, typer.Option(help="Shares of training, validation and test, by time.")] = "8:1:1",
    max_rejected: Annotated[float, typer.Option(help="The share of rows that may be set aside.")] = 0.05,
    overwrite: Annotated[bool, typer.Option(help="Replace a prepared folder.")] = False,
) -> None:
    """Check raw logs, split them by time and encode them."""
    from llm4msr.data.prepare import prepare as run_prepare
    from llm4msr.data.sources.completejourney import NOTICE, complete_journey
    from llm4msr.data.sources.frames import from_frames
    from llm4msr.schema import Schema

    ratios = _ratios(split)
    if source is not None:
        console.print(NOTICE)
        tables = complete_journey(households=households, negatives_per_visit=negatives, seed=seed)
    elif schema is None or interactions is None:
        raise InputError("give --schema and --interactions for your own data, or --source completejourney")
    else:
        tables = from_frames(Schema.from_toml(schema), interactions, users=users, items=items, positives=positives)
    data = run_prepare(tables, out, ratios=ratios, max_rejected=max_rejected, overwrite=overwrite, report=_say)
    counts = data.manifest["counts"]
    _say(f"{counts['rows']} rows, {counts['users']} users, {counts['items']} items, {counts['positives']} positives")
    for name, parts in counts["scenarios"].items():
        shown = ", ".join(f"{part} {c['rows']} rows, {c['positive']} positive" for part, c in parts.items())
        _say(f"  {name}: {shown}")
        for part, c in parts.items():
            if c["positive"] in (0, c["rows"]):
                _say(f"  warning: {name} has one class or no row in the {part} part: its AUC there is undefined")
    for reason_text, count in counts["rejected"].items():
        _say(f"  set aside: {count} x {reason_text} (see {out / 'rejected.parquet'})")


@app.command()
def reason(
    data: DataArgument,
    knowledge: KnowledgeOption,
    model: ModelOption = None,
    dtype: DTypeOption = "bfloat16",
    protocol: Annotated[
        Literal["slices", "train_end"],
        typer.Option(help="When users' prompts are made; train_end is the paper's, and leaks training labels."),
    ] = "slices",
    slices: Annotated[int, typer.Option(help="Slices of the training period.")] = 4,
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
) -> None:
    """Let the frozen LLM read scenarios, users and items; only what is missing is asked."""
    from llm4msr.data.prepared import PreparedData
    from llm4msr.knowledge.engines.base import Generation
    from llm4msr.knowledge.reason import ReasonConfig
    from llm4msr.knowledge.reason import reason as run_reason

    config = _validated(
        ReasonConfig,
        {
            "levels": [level.strip() for level in levels.split(",")],
            "protocol": protocol,
            "slices": slices,
            "history": history,
            "scenario": Generation(pooling="last_generated", max_new_tokens=max_new_tokens),
            "user": Generation(pooling=pooling, max_new_tokens=max_new_tokens),
            "item": Generation(pooling=item_pooling, chat=False),
        },
    )
    opened = PreparedData.open(data)
    with _Bars() as bars:
        summaries = run_reason(
            opened, _engine(model, dtype), knowledge, config, templates=templates, progress=bars.reasoning
        )
    for s in summaries:
        _say(f"{s.level}: {s.prompts} prompts, {s.distinct} different, {s.distinct - s.answered} of those known before")
    if protocol == "train_end":
        _say("warning: protocol train_end shows each training row its own label; reports say so")


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
    from llm4msr.training.run import parse_config, train_run

    raw = _read_toml(config) if config is not None else {}
    for path, value in (
        ("data", data),
        ("knowledge_folder", knowledge),
        ("model.backbone.name", backbone),
        ("model.enhancer.name", enhancer),
    ):
        if value is not None:
            _put(raw, path, str(value))
    for assignment in settings or []:
        path, _, text = assignment.partition("=")
        _put(raw, path.strip(), _value(text.strip()))
    run_config = parse_config(raw, str(config) if config is not None else "the settings")
    with _Bars() as bars:
        result = train_run(run_config, out, lambda p: bars.training("training", p))
    _say(f"best validation at epoch {result.best_epoch}, {result.seconds:.0f} s, {result.parameters} parameters")
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
) -> None:
    """Show a user's history, prompt and text, and how the vector was taken."""
    from llm4msr.data.prepared import PreparedData
    from llm4msr.knowledge.sources import KnowledgeFolder
    from llm4msr.report.explain import explain_user

    opened = PreparedData.open(data)
    folder = KnowledgeFolder.open(knowledge, opened)
    _print_explanation(explain_user(opened, folder, user, lambda: _engine(model, dtype)))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to work in.")] = Path("demo"),
    full: Annotated[bool, typer.Option("--full", help="All households, in place of 200.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each model.")] = 3,
) -> None:
    """The whole way on real data: raw logs to an AUC table, with and without knowledge."""
    import time

    from llm4msr.data.sources.completejourney import NOTICE
    from llm4msr.experiments.demo import DemoSettings, Listener, run_demo
    from llm4msr.report.tables import rich_tables

    began = time.perf_counter()
    settings = DemoSettings.full(seeds) if full else DemoSettings(seeds=seeds)
    with _Bars() as bars:
        listener = Listener(say=_say, reasoning=bars.reasoning, training=bars.training)
        folder = out / ("full" if full else "households-200")
        result = run_demo(folder, settings, lambda: _engine(None, "bfloat16"), listener)
    _print_explanation(result.explanation)
    for table in rich_tables(result.rows, result.scenarios):
        console.print()
        console.print(table)
    console.print(
        f"Mean and standard deviation over {seeds} seed(s), {settings.backbone} backbone. {NOTICE}", style="dim"
    )
    console.print(f"Everything lies in {folder}: data, knowledge, runs. {time.perf_counter() - began:.0f} s.")


def main() -> None:
    """Run the command line; an `InputError` is printed without a traceback and ends with exit code 2."""
    try:
        app()
    except InputError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(where + str(error.strerror or error))}", soft_wrap=True
        )
        sys.exit(2)


class _Bars:
    """Progress bars with rate and time left, for reasoning and training."""

    def __enter__(self) -> _Bars:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def reasoning(self, progress: Any) -> None:
        """One step of `reason`."""
        task = self._task(progress.level, progress.total)
        speed = self._bars.tasks[self._bars.task_ids.index(task)].speed
        rate = f"{speed * 60:.0f} prompts/min" if speed else ""
        self._bars.update(task, completed=progress.done, total=progress.total, rate=rate)

    def training(self, name: str, progress: Any) -> None:
        """One validation of a training run."""
        task = self._task(name, progress.steps)
        auc = "" if progress.validation is None else f"AUC {progress.validation:.4f}, "
        rate = f"{auc}{progress.rows_per_second:,.0f} rows/s"
        self._bars.update(task, completed=progress.step, rate=rate)

    def _task(self, name: str, total: int) -> Any:
        if name not in self._tasks:
            for other in self._tasks.values():
                self._bars.update(other, visible=False)
            self._tasks[name] = self._bars.add_task(name, total=total, rate="")
        return self._tasks[name]


def _say(message: str) -> None:
    console.print(message, highlight=False, markup=False, soft_wrap=True)


def _engine(model: Path | None, dtype: Literal["bfloat16", "float32"]) -> Any:
    from llm4msr.knowledge.engines.embedded import embedded_model
    from llm4msr.knowledge.engines.transformers import TransformersEngine

    return TransformersEngine(model if model is not None else embedded_model(_say), dtype=dtype)


def _print_scores(run: Path, *, anew: bool = False) -> None:
    from llm4msr.data.prepared import PreparedData
    from llm4msr.report.tables import Row, rich_tables
    from llm4msr.training.run import evaluate_run, read_result, run_config

    scores = evaluate_run(run) if anew else read_result(run).scores
    config = run_config(run)
    data = PreparedData.open(config.data, check=False)
    name = f"{config.model.backbone.name} + {config.model.enhancer.name}"
    for table in rich_tables([Row(name, [scores])], [s.title for s in data.schema.scenarios]):
        console.print(table)
    leaks = read_result(run).leaks
    if leaks:
        _say(f"note: {leaks}")
    _say(f"everything lies in {run}")


def _print_explanation(explanation: Any) -> None:
    from rich.panel import Panel

    counts = ", ".join(f"{name} {count}" for name, count in explanation.counts.items())
    console.rule(f"user {escape(explanation.user)}")
    _say(f"positives: {counts}")
    if explanation.prompt is None:
        _say("no positive is before any snapshot, so there is no prompt; the model uses its learned default vector")
        return
    _say(f"snapshot: {explanation.snapshot:%Y-%m-%d %H:%M:%S} UTC, made of the positives before it:")
    for p in explanation.history:
        _say(f"  {p.time:%Y-%m-%d %H:%M}  {p.scenario}: {p.behaviour} {p.item}")
    console.print(Panel(escape(explanation.prompt), title="prompt", title_align="left"))
    title = "text, written for this page" if explanation.on_request else "text"
    cut = " (cut off by the token limit)" if explanation.finish_reason == "length" else ""
    console.print(Panel(escape(explanation.text or "(empty)"), title=title + cut, title_align="left"))
    _say(f"the user's vector is {explanation.how}")


def _ratios(text: str) -> tuple[float, float, float]:
    parts = text.split(":")
    try:
        first, second, third = (float(p) for p in parts)
    except ValueError:
        raise InputError(f"--split {text}: expected three numbers, as in 8:1:1") from None
    return first, second, third


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the settings cannot be read: {error}") from error


def _put(raw: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        raw = cast(dict[str, Any], raw.setdefault(name, {}))
        if not isinstance(raw, dict):
            raise InputError(f"--set {path}: {name} is a value, not a table of settings")
    raw[last] = value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _validated(kind: Any, raw: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from llm4msr.schema import explain_validation

    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise InputError(explain_validation(error)) from error


if __name__ == "__main__":
    main()
