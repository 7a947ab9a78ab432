"""KuaiSAR and KuaiSAR-small: searches and recommendations of one video platform (Sun et al., CIKM 2023).

The archive's CSV files lie in one folder. A recommended item is clicked when `click` is 1, a searched one when
`click_cnt` is above 0. Captions and search words are given only as word ids, so a language model reads the items'
categories.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from llm4msr.cores import usable_cores
from llm4msr.data.sources.delimited import read_delimited
from llm4msr.data.tables import Table, Tables
from llm4msr.errors import InputError
from llm4msr.schema import Schema
from llm4msr.validation import Settings

_ID, _FLAG, _MS, _TEXT = pa.int64(), pa.int8(), pa.float64(), pa.string()
_LEVELS = ("first", "second", "third", "fourth")
_LEVELS_OF_FIELDS = _LEVELS[:2]
_COLUMNS: dict[str, dict[str, pa.DataType]] = {  # read in parallel, the largest file first
    "item_features.csv": {"item_id": _ID, "author_id": _TEXT, "item_type": _TEXT, "upload_type": _TEXT}
    | {f"{level}_level_category_id": _TEXT for level in _LEVELS_OF_FIELDS}
    | {f"{level}_level_category_name_en": _TEXT for level in _LEVELS},
    "rec_inter.csv": {"user_id": _ID, "item_id": _ID, "timestamp": _MS}
    | dict.fromkeys(("click", "forward", "like"), _FLAG),
    "src_inter.csv": {"user_id": _ID, "item_id": _ID, "search_session_timestamp": _MS, "click_cnt": pa.int32()},
    "user_features.csv": {"user_id": _ID}
    | dict.fromkeys(("search_active_level", "rec_active_level", "onehot_feat1", "onehot_feat2"), _TEXT),
}


class KuaiSARConfig(Settings):
    """`folder` holds `rec_inter.csv`, `src_inter.csv`, `user_features.csv` and `item_features.csv`."""

    folder: Path


def kuaisar(config: KuaiSARConfig) -> Tables:
    """Read the tables of both scenarios; raises `InputError` if a file or a column is missing."""
    for name in _COLUMNS:  # check for all files before reading the first
        if not (config.folder / name).is_file():
            raise InputError(f"{config.folder / name}: no such file; KuaiSAR's archive has it beside rec_inter.csv")
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        waiting = {
            name: pool.submit(read_delimited, [config.folder / name], ",", types=types)
            for name, types in _COLUMNS.items()
        }
        tables = {name: future.result() for name, future in waiting.items()}
    items = tables["item_features.csv"]
    return Tables(
        schema=Schema.checked(_SCHEMA, "KuaiSAR"),
        interactions=_interactions(tables["rec_inter.csv"], tables["src_inter.csv"]),
        users=tables["user_features.csv"],
        items=items.replace(_items(items.frame)),
        recipe={"source": "kuaisar"},
    )


def _interactions(feed: Table, search: Table) -> Table:
    """Concatenate both logs; row numbers count the rows of the feed first, then those of the search."""
    clicked = pl.when(pl.col("click_cnt").is_not_null()).then((pl.col("click_cnt") > 0).cast(pl.Int8))
    none = pl.lit(0, dtype=pl.Int8)
    rows = pl.concat(
        [
            feed.frame.select(
                "user_id",
                "item_id",
                "timestamp",
                "click",
                "forward",
                "like",
                pl.lit("recommendation").alias("scenario"),
            ),
            search.frame.select(
                "user_id",
                "item_id",
                pl.col("search_session_timestamp").alias("timestamp"),
                clicked.alias("click"),
                none.alias("forward"),
                none.alias("like"),
                pl.lit("search").alias("scenario"),
            ),
        ]
    ).with_columns((pl.col("timestamp") // 3_600_000 % 24).cast(pl.Int8, strict=False).alias("hour"))
    before = feed.frame.select(pl.len()).collect().item() + len(feed.malformed)
    return Table(
        f"{feed.name}, {search.name}",
        rows,
        malformed=np.concatenate([feed.malformed, search.malformed + before]),
        keeps=(feed, search),
    )


def _items(items: pl.LazyFrame) -> pl.LazyFrame:
    """Make unknown categories and authors missing, and join the names of the known levels into the category path."""
    names = [_without(pl.col(f"{level}_level_category_name_en"), "empty") for level in _LEVELS]
    return items.with_columns(
        *(_without(pl.col(f"{level}_level_category_id"), "0", "-124", "empty") for level in _LEVELS_OF_FIELDS),
        _without(pl.col("author_id"), "0"),
        _without(pl.concat_str(names, separator=" > ", ignore_nulls=True), "").alias("category"),
    ).drop([f"{level}_level_category_name_en" for level in _LEVELS])


def _without(texts: pl.Expr, *unknown: str) -> pl.Expr:
    """The texts, with those in `unknown` made missing; faster than `replace`."""
    return pl.when(pl.all_horizontal(*(texts != text for text in unknown))).then(texts)


_SCHEMA = {
    "name": "KuaiSAR",
    "description": "a platform of short videos where people watch what is recommended and search for more",
    "user_description": "people who watch short videos",
    "item_description": "short videos and other search results",
    "columns": {
        "user": "user_id",
        "item": "item_id",
        "scenario": "scenario",
        "time": "timestamp",
        "time_unit": "ms",
        "label": "click",
    },
    "scenarios": [
        {
            "value": "recommendation",
            "description": "a feed of recommended videos",
            "notes": "About half of what is shown is clicked; interest is latent and browsing passive.",
        },
        {
            "value": "search",
            "description": "results for words that the person typed",
            "notes": "One result in eight is clicked; interest is explicit and of the moment.",
        },
    ],
    "fields": [
        {"name": "user_id", "side": "user"},
        {"name": "search_active_level", "side": "user"},
        {"name": "rec_active_level", "side": "user"},
        {"name": "onehot_feat1", "side": "user"},
        {"name": "onehot_feat2", "side": "user"},
        {"name": "item_id", "side": "item"},
        {"name": "author_id", "side": "item"},
        {"name": "item_type", "side": "item"},
        {"name": "upload_type", "side": "item"},
        {"name": "first_level_category_id", "side": "item"},
        {"name": "second_level_category_id", "side": "item"},
        {"name": "hour", "side": "context"},
    ],
    "item_text": {"category": "category", "details": ["item_type"]},
    "behaviours": [
        {"name": "like", "rule": "like > 0"},
        {"name": "forward", "rule": "forward > 0"},
        {"name": "click"},
    ],
}
