"""Amazon reviews, version 2 (2018): per category one file of reviews and one of metadata (Ni et al., EMNLP 2019).

The paper's setting: a category is a scenario, a rating above 3 is a positive, and only users who appear in every
category are kept. The files `Category.json.gz` or `Category_5.json.gz`, and `meta_Category.json.gz`, lie in one folder.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
from pydantic import Field

from llm4msr.data.sources.jsonlines import JsonLines, find_file
from llm4msr.data.sources.overlap import keep_overlapping
from llm4msr.data.tables import Table, Tables, rejects
from llm4msr.schema import Schema
from llm4msr.validation import Settings

_TAG = re.compile(r"<[^>]{0,500}>")
_CHUNK = 500_000


class Amazon2018Config(Settings):
    """`folder` holds the files; `overlapping` keeps only users who are in all `categories` (by default the paper's)."""

    folder: Path
    categories: tuple[str, ...] = Field(
        default=("All_Beauty", "Clothing_Shoes_and_Jewelry", "Luxury_Beauty"), min_length=1
    )
    overlapping: bool = True


class _Review(msgspec.Struct, rename={"user": "reviewerID", "item": "asin", "time": "unixReviewTime"}):
    overall: float
    user: str
    item: str
    time: int


class _Product(msgspec.Struct):
    asin: str
    title: Any = None
    brand: Any = None
    category: Any = None


def amazon2018(config: Amazon2018Config) -> Tables:
    """Read the tables of the categories; raises `InputError` for a missing file, another version, or no common user."""
    reviews = {c: JsonLines(find_file(config.folder, [f"{c}_5", c])) for c in config.categories}
    products = {c: JsonLines(find_file(config.folder, [f"meta_{c}"])) for c in config.categories}
    frames: dict[str, pl.DataFrame] = {}
    kept: pl.Series | None = None
    for category in sorted(reviews, key=lambda c: reviews[c].path.stat().st_size):  # smallest file first
        frames[category] = _read_reviews(reviews[category], kept if config.overlapping else None)
        kept = frames[category]["reviewerID"].unique()
    rows = pl.concat(frames[c].with_columns(pl.lit(c).alias("category_name")) for c in config.categories)
    where = str(config.folder)
    if config.overlapping:
        rows = keep_overlapping(rows, "reviewerID", "category_name", config.categories, where)
    wanted = set(rows["asin"].unique())
    items = pl.concat([_read_products(products[c], wanted) for c in config.categories])
    files = [*reviews.values(), *products.values()]
    unread = [(file.path.name, *entry) for file in files for entry in file.malformed]
    return Tables(
        schema=_schema(config.categories),
        interactions=Table(f"{where}: reviews", rows.lazy()),
        items=Table(f"{where}: metadata", items.unique("asin", keep="first", maintain_order=True).lazy()),
        recipe={
            "source": "amazon2018",
            "categories": list(config.categories),
            "overlapping": config.overlapping,
        },
        rejected=rejects({key: [entry[i] for entry in unread] for i, key in enumerate(("table", "row", "reason"))}),
        read=sum(file.read for file in files),
    )


def _read_reviews(file: JsonLines, users: pl.Series | None) -> pl.DataFrame:
    """Read a category's reviews; only those of `users` if given, since no other user can be in every category."""
    columns = {"reviewerID": pl.String, "asin": pl.String, "overall": pl.Float32, "unixReviewTime": pl.Int64}
    chunks = [pl.DataFrame(schema=columns)]
    rows: list[tuple[str, str, float, int]] = []

    def flush() -> None:
        chunk = pl.DataFrame(rows, schema=columns, orient="row")
        chunks.append(chunk if users is None else chunk.filter(pl.col("reviewerID").is_in(users.implode())))
        rows.clear()

    for review in file.records(_Review):
        rows.append((review.user, review.item, review.overall, review.time))
        if len(rows) == _CHUNK:
            flush()
    flush()
    return pl.concat(chunks)


def _read_products(file: JsonLines, wanted: set[str]) -> pl.DataFrame:
    """Read the `wanted` products: title, brand, category path without the root, and the path's first and last level."""
    rows = []
    for product in file.records(_Product):
        if product.asin in wanted:
            path = [_text(part) for part in product.category] if isinstance(product.category, list) else []
            path = [part for part in path if part][1:]
            group, leaf = (path[0], path[-1]) if path else (None, None)
            rows.append((product.asin, _text(product.title), _text(product.brand), " > ".join(path), group, leaf))
    names = ("asin", "title", "brand", "category", "group", "leaf")
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    return frame.with_columns(pl.col(names[1:]).replace("", None))


def _text(value: object) -> str:
    """A text without HTML tags, entities decoded; empty if it is no text, or a script that was scraped instead."""
    if not isinstance(value, str) or "getTime(" in value:
        return ""
    return " ".join(_TAG.sub(" ", html.unescape(value)).split())


def _schema(categories: Iterable[str]) -> Schema:
    fields = [("reviewerID", "user"), ("asin", "item"), ("brand", "item"), ("group", "item"), ("leaf", "item")]
    return Schema.checked(
        {
            "name": "Amazon reviews 2018",
            "description": "an online shop whose departments share their customers",
            "user_description": "customers who write reviews",
            "item_description": "products that a customer may like",
            "columns": {
                "user": "reviewerID",
                "item": "asin",
                "scenario": "category_name",
                "time": "unixReviewTime",
                "time_unit": "s",
                "label_rule": "overall > 3",
            },
            "scenarios": [{"value": c, "name": c.replace("_", " ")} for c in categories],
            "fields": [{"name": name, "side": side} for name, side in fields],
            "item_text": {"title": "title", "category": "category", "details": ["brand"]},
            "behaviours": [{"name": "liked"}],
        },
        "Amazon 2018",
    )
