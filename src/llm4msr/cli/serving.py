"""The serving commands: export, serve, score, events."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from llm4msr.cli.base import MovedDataOption, MovedKnowledgeOption, app, say
from llm4msr.errors import InputError

BundleArgument = Annotated[Path, typer.Argument(help="A folder that `export` wrote, or a link to one.")]
StateOption = Annotated[
    Path | None,
    typer.Option(help="The folder of the log of events.", show_default="the bundle's name and .state"),
]


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A folder that `train` wrote.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    data: MovedDataOption = None,
    knowledge: MovedKnowledgeOption = None,
    as_of: Annotated[
        datetime | None,
        typer.Option(help="States and histories from before this time (UTC).", show_default="all"),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write the model as ONNX too, for other servers.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a bundle.")] = False,
) -> None:
    """Make a bundle of a run: one folder with all that serving needs."""
    from llm4msr.serving.export import export_bundle
    from llm4msr.training.identity import run_config

    config = run_config(run, data, knowledge)
    export_bundle(run, out, as_of_time=as_of, onnx=onnx, overwrite=overwrite, report=say, config=config)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    say(f"{out}: {size / 1e6:.1f} MB; {out / 'card.md'} describes it; serve it with `llm4msr serve {out}`")


@app.command()
def serve(
    bundle: BundleArgument,
    host: Annotated[
        str, typer.Option(help="The address to listen at; others than loopback need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen at.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes; about one per core.")] = 1,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of one request's computation.")] = 1,
    state: StateOption = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once in a process; more get 429.")] = 64,
    body_limit: Annotated[int, typer.Option(min=1024, help="The most bytes of a request.")] = 1 << 20,
    timeout: Annotated[float, typer.Option(min=0.05, help="The most seconds of a request.")] = 5.0,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log one line per request.")] = False,
) -> None:
    """Serve a bundle over HTTP, with a page at /. The token, if any, is read from LLM4MSR_TOKEN."""
    from llm4msr.serving.server import ServeConfig, default_state
    from llm4msr.serving.server import serve as run_server

    run_server(
        ServeConfig(
            bundle=bundle,
            state=state or default_state(bundle),
            host=host,
            port=port,
            workers=workers,
            threads=threads,
            body=body_limit,
            concurrency=concurrency,
            seconds=timeout,
            access_log=access_log,
        ),
        say,
    )


@app.command()
def score(
    bundle: BundleArgument,
    rows: Annotated[Path, typer.Argument(help="Users, items and scenarios, one a row: Parquet or CSV.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write: the rows, and the column `score`.")],
    state: Annotated[
        Path | None,
        typer.Option(help="The folder of a server's log of events.", show_default="users as they were at the export"),
    ] = None,
) -> None:
    """Score a table of users, items and scenarios with a bundle, as a server would."""
    from llm4msr.allocation import keep_freed_memory
    from llm4msr.data.sources.frames import read_table
    from llm4msr.serving.offline import score_table

    if out.suffix != ".parquet":
        raise InputError(f"--out {out}: expected a file name that ends in .parquet")
    keep_freed_memory()
    table = read_table(rows, "rows")
    counts = score_table(bundle, table, out, state=state, progress=lambda done, of: say(f"  {done} of {of} rows"))
    say(
        f"{out}: {counts.rows} rows; the bundle does not know the user of {counts.unknown_users} and the item of "
        f"{counts.unknown_items}"
    )
    if counts.without:
        say(f"warning: {counts.without} rows have no score: an id is missing, or the schema has no such scenario")


@app.command()
def events(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option(help="The Parquet file of events to write, for `prepare --events`.")],
    items: Annotated[
        Path | None, typer.Option(help="A Parquet file of new items to write; put them into your table of items.")
    ] = None,
    state: StateOption = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave out lines of the log that are damaged, and say so.")
    ] = False,
) -> None:
    """Export the events of a server's log, and the new items that it was told of, as Parquet."""
    from llm4msr.folders import file_aside
    from llm4msr.serving.bundle import read_schema
    from llm4msr.serving.harvest import harvest
    from llm4msr.serving.log import FILE
    from llm4msr.serving.server import default_state

    if state is not None and not state.is_dir():
        raise InputError(f"--state {state}: no such folder; a server keeps its log of events in it")
    for option, path in (("--out", out), ("--items", items)):
        if path is not None and path.suffix != ".parquet":
            raise InputError(f"{option} {path}: expected a file name that ends in .parquet")
    log, schema = (state or default_state(bundle)) / FILE, read_schema(bundle)
    if not log.is_file():
        say(f"warning: there is no log {log}; if the server was given a --state, give the same one here")

    def skipped(place: int) -> None:
        say(f"warning: {log}: the line at byte {place} is damaged, and is left out")

    found, new = harvest(log, schema, skipped if skip_damaged else None)
    with file_aside(out) as aside:
        found.write_parquet(aside)
    times = found[schema.columns.time].sort().dt.to_string("%Y-%m-%d %H:%M")
    when = f", from {times[0]} to {times[-1]} UTC" if found.height else ""
    say(f"{out}: {found.height} events of {log}{when}")
    if items is not None:
        with file_aside(items) as aside:
            new.write_parquet(aside)
        say(f"{items}: {new.height} new items")
