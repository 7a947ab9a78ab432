from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from llm4msr.data.negatives import Negatives
from llm4msr.data.prepare import prepare
from llm4msr.data.sources.amazon2014 import Amazon2014Config, amazon2014
from llm4msr.data.tables import Tables
from llm4msr.errors import InputError

from .real import SHARED, needs

Review = tuple[str, str, str, int | None]
"""Scenario, user, item, time."""
Product = tuple[str, str, str | None, str | None, str | None, str | None]
"""Scenario, item, title, categories, brand and categories, key words."""

REVIEWS: list[Review] = [
    ("beauty", "ann", "b1", 86_400),
    ("beauty", "ann", "b2", 172_800),
    ("sports", "ann", "s1", 86_400),
    ("toys", "ann", "t1", None),
    ("beauty", "bob", "b2", 259_200),
    ("sports", "cat", "s2", 345_600),
    ("beauty", "dan", "b1", 432_000),
    ("sports", "dan", "s2", 518_400),
    ("toys", "dan", "t1", None),
]
PRODUCTS: list[Product] = [
    ("beauty", "b1", "Red Lacquer", "Beauty > Makeup > Nails > Nail Polish", "OPI ; Makeup ; Nails", "red lacquer"),
    ("beauty", "b2", "Soap", "Beauty > Bath", None, "soap"),
    ("sports", "s1", None, None, "Glock ; Hunting & Fishing ; Hunting ; Grips", "rubber grip"),
    ("sports", "s2", None, None, None, "ball pump"),
    ("sports", "b1", "another row of one item", None, None, None),
    ("toys", "t1", "Puzzle", "Toys & Games > Puzzles", None, "puzzle"),
]


def shop(folder: Path, reviews: Sequence[Review] = REVIEWS, products: Sequence[Product] = PRODUCTS) -> Path:
    names = ["scenario", "user", "item", "timestamp"]
    pl.DataFrame(list(reviews), schema=names, orient="row").with_columns(
        pl.int_range(pl.len(), dtype=pl.Int16).over("user", "scenario").alias("position")
    ).write_parquet(folder / "interactions.parquet")
    names = ["scenario", "item", "title", "categories", "brand_and_categories", "text_id"]
    pl.DataFrame(list(products), schema=dict.fromkeys(names, pl.String), orient="row").write_parquet(
        folder / "items.parquet"
    )
    return folder


def read(folder: Path, *scenarios: str, overlapping: bool = True) -> Tables:
    return amazon2014(Amazon2014Config(folder=folder, scenarios=scenarios, overlapping=overlapping))


def reviews(tables: Tables) -> list[tuple[object, ...]]:
    frame = tables.interactions.frame.collect()
    return frame.select("scenario", "user", "item", "timestamp", "reviewed").rows()


def test_the_users_of_both_scenarios_are_kept_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert reviews(read(shop(tmp_path), "beauty", "sports")) == [
        ("beauty", "ann", "b1", 86_400, 1),
        ("beauty", "ann", "b2", 172_800, 1),
        ("sports", "ann", "s1", 86_400, 1),
        ("beauty", "dan", "b1", 432_000, 1),
        ("sports", "dan", "s2", 518_400, 1),
    ]


def test_every_user_of_the_scenarios_is_kept_on_request(tmp_path: Path) -> None:
    tables = read(shop(tmp_path), "sports", "beauty", overlapping=False)
    assert [user for _, user, *_ in reviews(tables)] == ["ann", "ann", "ann", "bob", "cat", "dan", "dan"]
    assert tables.recipe == {"source": "amazon2014", "scenarios": ["sports", "beauty"], "overlapping": False}


def test_one_scenario_is_possible(tmp_path: Path) -> None:
    assert [row[:3] for row in reviews(read(shop(tmp_path), "sports"))] == [
        ("sports", "ann", "s1"),
        ("sports", "cat", "s2"),
        ("sports", "dan", "s2"),
    ]


def test_an_item_has_its_brand_its_category_path_and_their_levels(tmp_path: Path) -> None:
    items = read(shop(tmp_path), "beauty", "sports").items
    assert items is not None
    frame = items.frame.collect()
    assert frame.columns == ["item", "title", "brand", "category", "group", "subgroup", "leaf"]
    assert frame.rows() == [
        ("b1", "Red Lacquer", "OPI", "Makeup > Nails > Nail Polish", "Makeup", "Nails", "Nail Polish"),
        ("b2", "Soap", None, "Bath", "Bath", None, "Bath"),
        ("s1", "rubber grip", "Glock", "Hunting & Fishing > Hunting > Grips", "Hunting & Fishing", "Hunting", "Grips"),
        ("s2", "ball pump", None, None, None, None, None),
    ]


def test_a_scenario_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(shop(tmp_path), "beauty", "sport")
    path = tmp_path / "interactions.parquet"
    assert str(error.value) == f"{path}: there is no scenario 'sport'; did you mean 'sports'?"
    with pytest.raises(InputError, match="no scenario 'xyzzy'; known: beauty, sports, toys"):
        read(tmp_path, "xyzzy")


def test_a_scenario_without_times_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(shop(tmp_path), "beauty", "toys")
    assert str(error.value) == (
        f"{tmp_path / 'interactions.parquet'}: the scenario 'toys' has no timestamps, only an order, so it cannot be "
        "split by time; take beauty, sports"
    )


def test_scenarios_without_a_common_user_are_refused_with_their_numbers_of_users(tmp_path: Path) -> None:
    alone = [row for row in REVIEWS if row[1] not in ("ann", "dan")] + [("beauty", "eve", "b1", 5)]
    with pytest.raises(InputError) as error:
        read(shop(tmp_path, alone), "sports", "beauty")
    assert str(error.value) == (
        f"{tmp_path / 'interactions.parquet'}: no user is in all 2 scenarios (users in sports: 1, beauty: 2); take "
        "fewer scenarios, or keep users of a single one too with overlapping=false"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    shop(tmp_path)
    (tmp_path / "items.parquet").unlink()
    with pytest.raises(InputError, match=r"items\.parquet: no such file; the folder of Amazon 2014 holds"):
        read(tmp_path, "beauty")


@pytest.mark.parametrize(("file", "column"), [("interactions", "timestamp"), ("items", "brand_and_categories")])
def test_a_missing_column_is_named_with_its_file(tmp_path: Path, file: str, column: str) -> None:
    path = shop(tmp_path) / f"{file}.parquet"
    pl.read_parquet(path).drop(column).write_parquet(path)
    with pytest.raises(InputError, match=rf"{file}\.parquet: has no column '{column}'"):
        read(tmp_path, "beauty")


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (shop(tmp_path) / "items.parquet").write_bytes(b"PAR1 no more PAR1")
    with pytest.raises(InputError, match=r"items\.parquet: cannot be read: "):
        read(tmp_path, "beauty")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = shop(tmp_path) / "interactions.parquet"
    raw = path.read_bytes()
    path.write_bytes(b"PAR1" + b"\xff" * (len(raw) // 2) + raw[4 + len(raw) // 2 :])
    with pytest.raises(InputError, match=r"interactions\.parquet: cannot be read: "):
        read(tmp_path, "beauty")


def test_a_row_without_a_time_is_set_aside(tmp_path: Path) -> None:
    folder = shop(tmp_path, [*REVIEWS, ("sports", "dan", "s1", None)])
    data = prepare(read(folder, "beauty", "sports"), tmp_path / "data", ratios=(3, 1, 1), max_rejected=0.5)
    assert data.manifest["counts"]["rejected"] == {"time missing": 1}


def test_the_tables_are_prepared_with_sampled_negatives(tmp_path: Path) -> None:
    tables = read(shop(tmp_path), "beauty", "sports", overlapping=False)
    assert tables.negatives == Negatives(ratio=4, window=2000)
    data = prepare(tables, tmp_path / "data", ratios=(4, 2, 1))
    rows = zip(data.users["user"].gather(data.user), data.items["item"].gather(data.item), data.label, strict=True)
    # Training holds b1, b2 of ann and bob, and s1 of ann; validation s2 of cat and b1 of dan; the test s2 of dan.
    assert list(dict.fromkeys(rows)) == [  # the few negatives that there are occur several times
        ("ann", "b1", 1),
        ("ann", "b2", 0),  # she chooses it later
        ("ann", "s1", 1),
        ("ann", "b2", 1),
        ("bob", "b1", 0),
        ("bob", "b2", 1),
        ("cat", "s2", 1),
        ("dan", "b1", 1),
        ("dan", "s2", 1),
    ]
    assert data.positives.height == 7
    assert data.items["brand"].to_list() == ["OPI", None, "Glock", None]


@needs("amazon2014")
def test_the_real_files_are_read() -> None:
    tables = amazon2014(Amazon2014Config(folder=SHARED / "amazon2014"))
    assert tables.items is not None
    rows, items = tables.interactions.frame.collect(), tables.items.frame.collect()
    assert rows["user"].n_unique() == 1_625
    assert rows["timestamp"].null_count() == 0
    assert rows.group_by("scenario").agg(pl.col("user").n_unique()).sort("scenario").rows() == [
        ("beauty", 1_625),
        ("sports", 1_625),
    ]
    assert items["item"].is_unique().all()
    assert rows.join(items, on="item", how="anti").height == 0
    polish = items.row(by_predicate=pl.col("item") == "B004756YJA", named=True)
    assert (polish["brand"], polish["group"], polish["subgroup"]) == ("OPI", "Makeup", "Nails")


@needs("amazon2014")
def test_the_real_files_without_overlap_are_whole() -> None:
    tables = amazon2014(Amazon2014Config(folder=SHARED / "amazon2014", overlapping=False))
    counts = tables.interactions.frame.collect().group_by("scenario").len().sort("scenario")
    assert counts.rows() == [("beauty", 198_502), ("sports", 296_337)]
