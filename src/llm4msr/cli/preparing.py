"""The command `prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm4msr.cli.base import app, belongs, console, say
from llm4msr.errors import InputError, nearest

if TYPE_CHECKING:
    import numpy as np

    from llm4msr.data.prepared import PreparedData

_LONG_AGO = "1990-01-01"
"""For a log that begins before this day, `prepare` warns that the time unit may be wrong."""


@app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    schema: Annotated[Path | None, typer.Option(help="The schema (TOML) of your own data.")] = None,
    interactions: Annotated[Path | None, typer.Option(help="Impressions: Parquet or CSV.")] = None,
    users: Annotated[Path | None, typer.Option(help="Users, one per row: Parquet or CSV.")] = None,
    items: Annotated[Path | None, typer.Option(help="Items, one per row: Parquet or CSV.")] = None,
    positives: Annotated[Path | None, typer.Option(help="A history wider than the positive impressions.")] = None,
    events: Annotated[
        Path | None, typer.Option(help="More positives to add to the history, as `llm4msr events` writes them.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="A known data set, in place of your own files.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the source, as in --set folder=PATH (repeat it).")
    ] = None,
    negatives: Annotated[
        int | None, typer.Option(min=1, help="Sample this many negatives per positive; see docs/data.md.")
    ] = None,
    popularity: Annotated[
        float | None,
        typer.Option(help="Exponent of an item's local popularity in --negatives.", show_default="1.0; 0 is uniform"),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="How many of the scenario's nearest positives --negatives draws from.", show_default="2000"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The seed of --negatives.", show_default="0")] = None,
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
    from llm4msr.validation import parse_assignment

    keep_freed_memory()
    ratios = _ratios(split)
    how = {"popularity": popularity, "window": window, "seed": seed}
    for name, value in how.items():
        belongs(f"--{name}", value, "--negatives", there=negatives is not None)
    sampling = None
    if negatives is not None:
        sampling = Negatives.checked({"ratio": negatives} | {k: v for k, v in how.items() if v is not None})
    own = {"--schema": schema, "--interactions": interactions, "--users": users, "--items": items}
    own |= {"--positives": positives, "--events": events}
    if source is not None and (given := [name for name, value in own.items() if value is not None]):
        raise InputError(f"{given[0]}: is for data of your own, and --source {source} reads its own files")
    for name, path in own.items():
        if path is not None and path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise InputError(f"--out {out}: lies in {name} {path}, all of whose files are read; choose another place")
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
    _tell_of_times(data)
    _tell_of_counts(data, out)


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
        say(f"warning: is the schema's time_unit right?{_unit_that_fits(data)}")


def _unit_that_fits(data: PreparedData) -> str:
    """A hint at the time unit with which the log ends between `_LONG_AGO` and tomorrow, if there is one."""
    import numpy as np

    from llm4msr.times import MICROSECONDS

    unit = data.schema.columns.time_unit
    if unit is None:
        return ""
    number = int(data.time[-1]) // MICROSECONDS[unit]
    earliest, latest = np.datetime64(_LONG_AGO, "us"), np.datetime64("now", "us") + np.timedelta64(1, "D")
    for other, factor in ((name, f) for name, f in MICROSECONDS.items() if name != unit):
        end = np.datetime64(number * factor, "us")
        if earliest < end < latest:
            return f" With {other!r}, the log would end on {_day(end)}"
    return ""


def _day(time: np.datetime64) -> str:
    return str(time.astype("datetime64[D]"))


def _tell_of_counts(data: PreparedData, out: Path) -> None:
    """Print how many rows and positives there are by scenario and part, and what was set aside."""
    import polars as pl

    from llm4msr.data.classes import tells
    from llm4msr.data.validate import UNKNOWN_SCENARIO

    counts = data.manifest["counts"]
    say(f"{counts['rows']} rows, {counts['users']} users, {counts['items']} items, {counts['positives']} positives")
    for name, parts in counts["scenarios"].items():
        if not any(c["rows"] for c in parts.values()):
            say(f"  warning: no row is of the scenario {name!r}")
            continue
        shown = ", ".join(f"{part} {c['rows']} rows, {c['positive']} positive" for part, c in parts.items())
        say(f"  {name}: {shown}")
        for part, c in parts.items():
            if c["positive"] in (0, c["rows"]):
                say(f"  warning: {name} has one class or no row in the {part} part: its AUC there is undefined")
            elif part != "train" and not tells(c["rows"], c["positive"]):
                say(f"  warning: {name} has few rows of a class in the {part} part: its AUC there says little")
    for reason_text, count in counts["rejected"].items():
        say(f"  set aside: {count} x {reason_text} (see {out / 'rejected.parquet'})")
    if UNKNOWN_SCENARIO not in counts["rejected"]:
        return
    unknown = pl.read_parquet(out / "rejected.parquet").filter(pl.col("reason") == UNKNOWN_SCENARIO)["scenario"]
    for value, count in unknown.value_counts(sort=True).head(5).iter_rows():
        hint = "" if value is None else f"; {nearest(value, [s.value for s in data.schema.scenarios])}"
        say(f"  warning: the schema has no scenario {value!r}, and {count} rows name it{hint}")


def _ratios(text: str) -> tuple[float, float, float]:
    parts = text.split(":")
    try:
        first, second, third = (float(p) for p in parts)
    except ValueError:
        raise InputError(f"--split {text}: expected three numbers, as in 8:1:1") from None
    return first, second, third
