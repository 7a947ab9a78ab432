from __future__ import annotations

import gzip
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llm4msr.data.prepare import prepare
from llm4msr.data.sources.amazon2018 import Amazon2018Config, amazon2018
from llm4msr.data.tables import Tables
from llm4msr.errors import InputError

from .real import SHARED, needs

DAY = 86_400


def review(user: str, item: str, stars: float, day: int) -> str:
    """A line as the data set has it, with more keys than are read."""
    record = {"overall": stars, "verified": True, "reviewerID": user, "asin": item, "style": {"Size:": "L"}}
    return json.dumps({**record, "reviewText": "Très bien", "unixReviewTime": day * DAY})


def product(item: str, title: Any = "", brand: Any = "", category: Any = ()) -> str:
    return json.dumps({"category": category, "title": title, "also_buy": [], "brand": brand, "asin": item})


BEAUTY = [
    review("ann", "b1", 5.0, 1),
    review("bob", "b1", 3.0, 2),
    review("ann", "b2", 2.0, 5),
    review("dan", "b2", 4.0, 6),
]
LUXURY = [
    review("cat", "l1", 5.0, 3),
    review("ann", "l1", 4.0, 4),
    review("dan", "l2", 1.0, 7),
    review("eve", "l2", 1.0, 8),
    review("fay", "l2", 1.0, 9),
]
BEAUTY_ITEMS = [
    product("b1", "Hand Cream", "Nivea", ["Beauty", "Skin Care", "Hands"]),
    product("b2", "Brush", "", ["Beauty"]),
    product("b9", "never reviewed", "x", ["Beauty", "x"]),
]
LUXURY_ITEMS = [product("l1", "Perfume", "Dior", ["Luxury", "Scents"]), product("b1", "the same item again")]


def write(path: Path, lines: Sequence[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Two categories: one as gzip and 5-core, the other as plain text and whole."""
    folder = tmp_path / "shop"
    folder.mkdir()
    write(folder / "Beauty_5.json.gz", BEAUTY)
    write(folder / "meta_Beauty.json.gz", BEAUTY_ITEMS)
    write(folder / "Luxury.json", LUXURY)
    write(folder / "meta_Luxury.json", LUXURY_ITEMS)
    return folder


def read(folder: Path, *categories: str, overlapping: bool = True) -> Tables:
    return amazon2018(Amazon2018Config(folder=folder, categories=categories, overlapping=overlapping))


def reviews(tables: Tables) -> list[tuple[Any, ...]]:
    frame = tables.interactions.frame.collect()
    return frame.select("category_name", "reviewerID", "asin", "overall", "unixReviewTime").rows()


def items(tables: Tables) -> pl.DataFrame:
    assert tables.items is not None
    return tables.items.frame.collect()


def aside(tables: Tables) -> list[tuple[Any, ...]]:
    assert tables.rejected is not None
    return tables.rejected.select("table", "row", "reason").rows()


def test_the_users_of_both_categories_are_kept(shop: Path) -> None:
    tables = read(shop, "Beauty", "Luxury")
    assert reviews(tables) == [
        ("Beauty", "ann", "b1", 5.0, 1 * DAY),
        ("Beauty", "ann", "b2", 2.0, 5 * DAY),
        ("Beauty", "dan", "b2", 4.0, 6 * DAY),
        ("Luxury", "ann", "l1", 4.0, 4 * DAY),
        ("Luxury", "dan", "l2", 1.0, 7 * DAY),
    ]
    assert tables.recipe == {"source": "amazon2018", "categories": ["Beauty", "Luxury"], "overlapping": True}
    assert aside(tables) == []


def test_every_user_is_kept_on_request(shop: Path) -> None:
    everyone = reviews(read(shop, "Luxury", "Beauty", overlapping=False))
    assert [row[:2] for row in everyone] == [("Luxury", user) for user in ("cat", "ann", "dan", "eve", "fay")] + [
        ("Beauty", user) for user in ("ann", "bob", "ann", "dan")
    ]


def test_reviews_that_are_read_in_several_chunks_are_the_same(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reviews(read(shop, "Beauty", "Luxury"))
    monkeypatch.setattr(importlib.import_module("llm4msr.data.sources.amazon2018"), "_CHUNK", 2)
    assert reviews(read(shop, "Beauty", "Luxury")) == whole


def test_an_item_has_its_texts_and_its_category_path_below_the_root(shop: Path) -> None:
    frame = items(read(shop, "Beauty", "Luxury"))
    assert frame.columns == ["asin", "title", "brand", "category", "group", "leaf"]
    assert frame.rows() == [
        ("b1", "Hand Cream", "Nivea", "Skin Care > Hands", "Skin Care", "Hands"),
        ("b2", "Brush", None, None, None, None),
        ("l1", "Perfume", "Dior", "Scents", "Scents", "Scents"),
    ]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Shampoo &amp; Soap &#39;n&#39; more", "Shampoo & Soap 'n' more"),
        ('<span class="x">Soap</span><br/>for  all', "Soap for all"),
        ("&lt;b&gt;Soap&lt;/b&gt;", "Soap"),
        ("5 < 6", "5 < 6"),
        ("\n  Crème\tfraîche ", "Crème fraîche"),
        ("var aPageStart = (new Date()).getTime();", None),
        ("<br>", None),
        ("", None),
        (None, None),
        (["Soap"], None),
        (7, None),
    ],
)
def test_a_title_is_cleaned(tmp_path: Path, raw: Any, clean: str | None) -> None:
    write(tmp_path / "A.json", [review("ann", "b1", 5.0, 1)])
    write(tmp_path / "meta_A.json", [product("b1", raw, raw, ["root", raw, "leaf"])])
    row = items(read(tmp_path, "A")).row(0, named=True)
    assert (row["title"], row["brand"]) == (clean, clean)
    assert row["category"] == ("leaf" if clean is None else f"{clean} > leaf")


@pytest.mark.parametrize("category", ["Beauty", None, [], [3, None]])
def test_a_category_that_is_no_list_of_names_is_missing(tmp_path: Path, category: Any) -> None:
    write(tmp_path / "A.json", [review("ann", "b1", 5.0, 1)])
    write(tmp_path / "meta_A.json", [product("b1", "Soap", "", category)])
    assert items(read(tmp_path, "A")).rows() == [("b1", "Soap", None, None, None, None)]


def test_malformed_lines_are_set_aside_with_their_file_and_number(shop: Path) -> None:
    write(shop / "Beauty_5.json.gz", ["not JSON", *BEAUTY[:2], "{'asin': 'b1'}", BEAUTY[2], '{"asin": "b1"', BEAUTY[3]])
    number = json.dumps({"overall": 5, "reviewerID": 3, "asin": "l1", "unixReviewTime": 1})
    write(shop / "Luxury.json", [*LUXURY, number, "[]"])
    write(shop / "meta_Luxury.json", [*LUXURY_ITEMS, "{}"])
    tables = read(shop, "Beauty", "Luxury")
    assert [row[1:3] for row in reviews(tables)] == [
        ("ann", "b1"),
        ("ann", "b2"),
        ("dan", "b2"),
        ("ann", "l1"),
        ("dan", "l2"),
    ]
    assert aside(tables) == [
        ("Beauty_5.json.gz", 0, "malformed line: not JSON"),
        ("Beauty_5.json.gz", 3, "malformed line: not JSON"),
        ("Beauty_5.json.gz", 5, "malformed line: not JSON"),
        ("Luxury.json", 5, "malformed line: Expected `str`, got `int` - at `$.reviewerID`"),
        ("Luxury.json", 6, "malformed line: Expected `object`, got `array`"),
        ("meta_Luxury.json", 2, "malformed line: Object missing required field `asin`"),
    ]


def test_a_line_that_is_no_utf8_is_set_aside(tmp_path: Path) -> None:
    bad = review("bob", "b1", 5.0, 1).encode().replace(b"bob", b"\xff\xfe")
    (tmp_path / "A.json").write_bytes(review("ann", "b1", 5.0, 1).encode() + b"\n" + bad + b"\n")
    write(tmp_path / "meta_A.json", [product("b1")])
    tables = read(tmp_path, "A")
    assert len(reviews(tables)) == 1
    assert [row[:2] for row in aside(tables)] == [("A.json", 1)]


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("Luxury.json", '{"rating": 5, "user_id": "a"}', "Object missing required field `overall`"),
        (
            "Luxury.json",
            review("ann", "l1", 5, 1).replace('"ann"', "1"),
            "Expected `str`, got `int` - at `$.reviewerID`",
        ),
        ("meta_Luxury.json", '{"parent_asin": "l1"}', "Object missing required field `asin`"),
    ],
)
def test_another_version_is_named_by_its_first_line(shop: Path, file: str, line: str, reason: str) -> None:
    write(shop / file, [line, *LUXURY])
    with pytest.raises(InputError) as error:
        read(shop, "Beauty", "Luxury")
    expected = f"{shop / file}: row 0: {reason}; is it the version of the data set that this source reads?"
    assert str(error.value) == expected


def test_categories_without_a_common_user_are_refused_with_their_numbers_of_users(shop: Path) -> None:
    write(shop / "Other.json", [review("gus", "o1", 5.0, 1), review("hal", "o1", 5.0, 1)])
    write(shop / "meta_Other.json", [product("o1")])
    message = (
        rf"^{shop}: no user is in all 2 scenarios \(users in Other: 2, Luxury: \d\); take fewer scenarios, or keep"
    )
    with pytest.raises(InputError, match=message):
        read(shop, "Other", "Luxury")


@pytest.mark.parametrize("file", ["Beauty_5.json.gz", "meta_Beauty.json.gz"])
@pytest.mark.parametrize("keep", [30, -9])
def test_a_truncated_file_is_named(shop: Path, file: str, keep: int) -> None:
    content = (shop / file).read_bytes()
    (shop / file).write_bytes(content[:keep])
    with pytest.raises(InputError) as error:
        read(shop, "Beauty")
    assert str(error.value).startswith(f"{shop / file}: cannot be read: Compressed file ended before the end")
    assert str(error.value).endswith("; is the file whole?")


@pytest.mark.parametrize("damage", [b"not gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + b"\xff" * 40])
def test_a_damaged_file_is_named(shop: Path, damage: bytes) -> None:
    (shop / "Beauty_5.json.gz").write_bytes(damage)
    with pytest.raises(InputError, match=r"Beauty_5\.json\.gz: cannot be read: .*; is the file whole\?$"):
        read(shop, "Beauty")


def test_a_missing_file_is_named(shop: Path) -> None:
    with pytest.raises(InputError) as error:
        read(shop, "Beauty", "Toys")
    assert str(error.value) == f"{shop}: has no Toys_5.json.gz or Toys.json.gz (or .json)"
    (shop / "meta_Luxury.json").unlink()
    with pytest.raises(InputError, match=r"has no meta_Luxury\.json\.gz \(or \.json\)"):
        read(shop, "Luxury")


def test_the_5_core_is_preferred(shop: Path) -> None:
    write(shop / "Beauty.json.gz", ["not read"])
    write(shop / "Beauty_5.json", ["not read"])
    assert aside(read(shop, "Beauty")) == []


def test_malformed_lines_are_a_share_of_the_lines_not_of_the_few_rows_that_are_kept(shop: Path, tmp_path: Path) -> None:
    others = [json.dumps({"reviewerID": f"r{n}", "asin": "l1", "overall": 5.0, "unixReviewTime": 1}) for n in range(90)]
    write(shop / "Luxury.json", [*LUXURY, *others, *["cut off"] * 3])
    data = prepare(read(shop, "Beauty", "Luxury"), tmp_path / "data", ratios=(3, 1, 1), max_rejected=0.05)
    assert data.rows == 5
    write(shop / "Luxury.json", [*LUXURY, *others, *["cut off"] * 9])
    with pytest.raises(InputError, match=r"9 of 1\d\d rows cannot be used"):
        prepare(read(shop, "Beauty", "Luxury"), tmp_path / "more", ratios=(3, 1, 1), max_rejected=0.05)


def test_the_tables_can_be_prepared(shop: Path, tmp_path: Path) -> None:
    write(shop / "Luxury.json", [*LUXURY, "cut off"])
    data = prepare(read(shop, "Beauty", "Luxury"), tmp_path / "data", ratios=(3, 1, 1), max_rejected=0.2)
    assert data.users["user"].gather(data.user).to_list() == ["ann", "ann", "ann", "dan", "dan"]
    assert data.items["item"].gather(data.item).to_list() == ["b1", "l1", "b2", "b2", "l2"]
    assert data.label.tolist() == [1, 1, 0, 1, 0]
    assert data.scenario.tolist() == [0, 1, 0, 0, 1]
    assert data.positives.height == 3
    rejected = pl.read_parquet(data.path / "rejected.parquet")
    assert rejected.select("table", "row", "reason").rows() == [("Luxury.json", 5, "malformed line: not JSON")]


@needs("amazon2018-gift-cards")
def test_the_real_files_can_be_prepared(tmp_path: Path) -> None:
    data = prepare(read(SHARED / "amazon2018-gift-cards", "Gift_Cards"), tmp_path / "data")
    counts = data.manifest["counts"]
    assert (counts["rows"], counts["users"], counts["items"], counts["positives"]) == (2_972, 458, 148, 2_906)
    assert counts["rejected"] == {}
    assert data.items.filter(pl.col("item") == "B004LLIKVU").select("title", "brand", "category").rows() == [
        ("Amazon eGift Card", None, "Gift Cards")
    ]
    assert data.items.filter(pl.col("title").is_null() | pl.col("title").str.contains("<|&amp;")).height == 0
