"""Amazon reviews of 2014 (5-core) as two Parquet files: what users reviewed, scenario by scenario.

The files are `interactions.parquet` (scenario, user, item, position, timestamp in seconds or null) and `items.parquet`
(scenario, item, title, categories as "A > B > C", brand_and_categories as "A ; B ; C", text_id). The data has only
positives, so negatives are sampled (`llm4msr.data.negatives`). He and McAuley (WWW 2016), McAuley et al. (SIGIR 2015).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
from pydantic import Field

from llm4msr.data.negatives import Negatives
from llm4msr.data.sources.overlap import keep_overlapping
from llm4msr.data.tables import Table, Tables, readable
from llm4msr.errors import InputError, nearest
from llm4msr.schema import Schema
from llm4msr.validation import Settings

_ABOUT = {
    "beauty": "make-up, skin care, hair care and perfumes",
    "sports": "sports, outdoor and hunting equipment",
    "toys": "toys and games for children",
    "games": "video games and consoles",
}


_ITEM_COLUMNS = ("scenario", "item", "title", "categories", "brand_and_categories", "text_id")


class Amazon2014Config(Settings):
    """`folder` holds the two files; `overlapping` keeps only users who are in all of the chosen `scenarios`."""

    folder: Path
    scenarios: tuple[str, ...] = Field(default=("beauty", "sports"), min_length=1)
    overlapping: bool = True


def amazon2014(config: Amazon2014Config) -> Tables:
    """Read the tables of the scenarios; raises `InputError` if a file, a scenario or its times are missing."""
    interactions = _read(config.folder / "interactions.parquet", ("scenario", "user", "item", "timestamp"))
    items = _read(config.folder / "items.parquet", _ITEM_COLUMNS)
    with readable(interactions.name):
        timed = interactions.frame.group_by("scenario").agg(pl.col("timestamp").is_not_null().any()).collect()
        chosen = interactions.frame.filter(pl.col("scenario").is_in(config.scenarios)).collect()
    known = dict(timed.iter_rows())
    for name in config.scenarios:
        if name not in known:
            raise InputError(f"{interactions.name}: there is no scenario {name!r}; {nearest(name, sorted(known))}")
        if not known[name]:
            raise InputError(
                f"{interactions.name}: the scenario {name!r} has no timestamps, only an order, so it cannot be split "
                f"by time; take {', '.join(sorted(n for n, has in known.items() if has))}"
            )
    if config.overlapping:
        chosen = keep_overlapping(chosen, "user", "scenario", config.scenarios, interactions.name)
    return Tables(
        schema=_schema(config.scenarios),
        interactions=Table(interactions.name, chosen.lazy().with_columns(pl.lit(1, dtype=pl.Int8).alias("reviewed"))),
        items=Table(items.name, _items(items.frame.filter(pl.col("scenario").is_in(config.scenarios)))),
        recipe={
            "source": "amazon2014",
            "scenarios": list(config.scenarios),
            "overlapping": config.overlapping,
        },
        negatives=Negatives(ratio=4, window=2000),
    )


def _items(items: pl.LazyFrame) -> pl.LazyFrame:
    """One row per item: title, brand, category path without the root, and the path's first, second and last level."""
    listed = pl.col("brand_and_categories").str.split(" ; ")
    path = pl.col("categories").str.split(" > ").list.slice(1)
    levels = pl.coalesce(path, listed.list.slice(1))
    return (
        items.with_columns(levels.alias("path"), listed.list.first().alias("brand"))
        .select(
            "item",
            pl.coalesce("title", "text_id").alias("title"),
            "brand",
            pl.col("path").list.join(" > ").alias("category"),
            pl.col("path").list.get(0, null_on_oob=True).alias("group"),
            pl.col("path").list.get(1, null_on_oob=True).alias("subgroup"),
            pl.col("path").list.last().alias("leaf"),
        )
        .unique("item", keep="first", maintain_order=True)
    )


def _schema(scenarios: tuple[str, ...]) -> Schema:
    fields = [("user", "user"), ("item", "item"), ("brand", "item")]
    fields += [(name, "item") for name in ("group", "subgroup", "leaf")]
    return Schema.checked(
        {
            "name": "Amazon reviews 2014",
            "description": "an online shop whose departments share their customers",
            "user_description": "customers who write reviews",
            "item_description": "products that a customer may review",
            "columns": {
                "user": "user",
                "item": "item",
                "scenario": "scenario",
                "time": "timestamp",
                "time_unit": "s",
                "label": "reviewed",
            },
            "scenarios": [{"value": name, "description": _ABOUT.get(name, "")} for name in scenarios],
            "fields": [{"name": name, "side": side} for name, side in fields],
            "item_text": {"title": "title", "category": "category", "details": ["brand"]},
            "behaviours": [{"name": "reviewed"}],
        },
        "Amazon 2014",
    )


def _read(path: Path, columns: tuple[str, ...]) -> Table:
    if not path.is_file():
        raise InputError(f"{path}: no such file; the folder of Amazon 2014 holds interactions.parquet, items.parquet")
    table = Table(str(path), pl.scan_parquet(path))
    for column in columns:
        table.require(column, "a column of the Amazon 2014 data")
    return table
