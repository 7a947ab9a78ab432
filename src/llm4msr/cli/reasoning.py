"""The command `reason`: ask the LLM for missing answers, plan that, or do a part of it."""

from __future__ import annotations

from datetime import datetime
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
    belongs,
    console,
    make_engine,
    say,
)
from llm4msr.errors import InputError
from llm4msr.knowledge import SnapshotProtocol
from llm4msr.knowledge.engines import Pooling
from llm4msr.report.terminal import Bars, reasoning_costs
from llm4msr.times import microseconds

if TYPE_CHECKING:
    from llm4msr.knowledge.reason import Shard


@app.command()
def reason(
    data: DataArgument,
    knowledge: KnowledgeOption,
    model: ModelOption = None,
    dtype: DTypeOption = "bfloat16",
    engine: EngineOption = "auto",
    command: CommandOption = "",
    protocol: Annotated[
        SnapshotProtocol,
        typer.Option(
            help="When users' prompts are made. train_end is the paper's and leaks training labels; all leaks all."
        ),
    ] = "slices",
    slices: Annotated[
        int | None, typer.Option(help="Snapshots of the protocol slices, over the training period.", show_default="4")
    ] = None,
    period: Annotated[
        float | None, typer.Option(help="Days between the snapshots of the protocol period.", show_default="30")
    ] = None,
    times: Annotated[
        str | None, typer.Option(help="Snapshots of the protocol times, separated by commas, as in 2017-06-01.")
    ] = None,
    history: Annotated[int, typer.Option(help="The most positives per scenario in a user's prompt (T).")] = 20,
    pooling: Annotated[
        Pooling,
        typer.Option(help="Which hidden state is a user's vector; last_generated is the paper's."),
    ] = "last_prompt",
    item_pooling: Annotated[
        Literal["last_prompt", "mean_prompt"], typer.Option(help="Which hidden state is an item's vector.")
    ] = "mean_prompt",
    all_items: Annotated[
        bool, typer.Option("--all-items", help="Read also items that occur in no row and no history.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Length limit of a text.")] = 160,
    levels: Annotated[
        str | None,
        typer.Option(help="What to reason about, separated by commas: scenario, user, item.", show_default="all three"),
    ] = None,
    reading: Annotated[
        str | None, typer.Option(help="Keep the items' vectors beside the others, under this name: docs/knowledge.md.")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Run only so many layers of the LLM.", show_default="all")] = None,
    templates: Annotated[Path | None, typer.Option(help="Folder with templates of your own.")] = None,
    language: Annotated[Literal["en", "zh"], typer.Option(help="Language of our templates.")] = "en",
    shard: Annotated[
        str | None, typer.Option(help="Ask only part i of n, as in 1/4, into a store file of its own.")
    ] = None,
    ray: Annotated[str | None, typer.Option(help="Run engines on a Ray cluster: its address, or local.")] = None,
    ray_actors: Annotated[int | None, typer.Option(min=1, help="Engines on the cluster.", show_default="1")] = None,
    ray_gpus: Annotated[float | None, typer.Option(min=0.0, help="GPUs of each engine.", show_default="0")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only estimate the cost: a few prompts are tried, and nothing is stored.")
    ] = False,
) -> None:
    """Let the frozen LLM read scenarios, users and items; only what is missing is asked."""
    from llm4msr.data.prepared import PreparedData
    from llm4msr.knowledge.engines.choice import make_engine as make
    from llm4msr.knowledge.engines.ray import RayEngine
    from llm4msr.knowledge.history import LEAKS
    from llm4msr.knowledge.plan import plan as make_plan
    from llm4msr.knowledge.questions import left_out
    from llm4msr.knowledge.readings import reading_path
    from llm4msr.knowledge.reason import check_usable
    from llm4msr.knowledge.reason import reason as run_reason
    from llm4msr.knowledge.reason_config import ReasonConfig

    for name, value in {"slices": slices, "period": period, "times": times}.items():
        belongs(f"--{name}", value, f"--protocol {name}", there=protocol == name)
    for name, number in {"actors": ray_actors, "gpus": ray_gpus}.items():
        belongs(f"--ray-{name}", number, "--ray", there=ray is not None)
    moments = {"slices": slices, "period_days": period, "times": times and _moments(times)}
    config = ReasonConfig.checked(
        {
            "levels": _levels(levels, reading),
            "snapshots": {"protocol": protocol} | {name: value for name, value in moments.items() if value is not None},
            "language": language,
            "history": history,
            "items": "all" if all_items else "occurring",
            "scenario": {"pooling": "last_generated", "max_new_tokens": max_new_tokens},
            "user": {"pooling": pooling, "max_new_tokens": max_new_tokens},
            "item": {"pooling": item_pooling, "chat": False},
        },
    )
    part = None if shard is None else _shard(shard)
    if reading is not None:
        knowledge = reading_path(knowledge, reading)
    opened = PreparedData.open(data)
    check_usable(knowledge, writes=not plan)  # before the model is loaded, which may take minutes
    if unread := left_out(opened, config):
        say(f"{unread} of {opened.items.height} items occur in no row and are not read; --all-items reads them, too")
    if ray is None:
        llm = make_engine(model, dtype, engine, command, layers)
    else:
        llm = RayEngine(
            partial(make, engine, model, dtype, command=command, layers=layers),
            address=ray,
            actors=ray_actors or 1,
            gpus=ray_gpus or 0.0,
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


def _levels(text: str | None, reading: str | None) -> list[str]:
    if reading is None:
        return [level.strip() for level in (text or "scenario,user,item").split(",")]
    if text not in (None, "item"):
        raise InputError(f"--levels {text}: a reading is of items alone; leave --levels out")
    return ["item"]


def _moments(text: str) -> list[int]:
    return [_moment(one) for one in text.split(",") if one.strip()]


def _moment(text: str) -> int:
    """Parse an ISO date or time to microseconds since 1970; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InputError(f"--times {text}: expected moments as in 2017-06-01 or 2017-06-01T12:00") from None
    return microseconds(moment)


def _shard(text: str) -> Shard:
    from llm4msr.knowledge.reason import Shard

    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise InputError(f"--shard {text}: expected part i of n, as in 1/4")
    return Shard(int(number) - 1, int(of))
