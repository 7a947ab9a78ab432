"""A data set small enough to write its prompts down: three users, three items, two scenarios, ten impressions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.schema import Schema

SECOND = 1_000_000
"""Microseconds; the kiosk's impressions are at the seconds 1 to 10, the first eight are the training part."""

SCHEMA: dict[str, Any] = {
    "name": "kiosk",
    "description": "a kiosk in a station",
    "user_description": "commuters",
    "item_description": "food",
    "columns": {"user": "who", "item": "what", "scenario": "place", "time": "at", "time_unit": "s", "label": "click"},
    "scenarios": [
        {"value": "h", "name": "Hall", "description": "people queue", "notes": "Coffee sells before nine."},
        {"value": "a", "name": "App"},
    ],
    "fields": [{"name": "who", "side": "user", "min_count": 1}, {"name": "what", "side": "item", "min_count": 1}],
    "item_text": {"title": "title", "category": "kind", "details": ["made_by"]},
    "user_text": {"details": ["home_town"]},
    "behaviours": [{"name": "bought", "rule": "paid == 1"}, {"name": "clicked"}],
}

ROWS = [
    (1, "ann", "coffee", "h", 1, 1),
    (2, "ann", "tea", "h", 0, 0),
    (3, "bob", "tea", "a", 1, 0),
    (4, "ann", "bun", "a", 1, 0),
    (5, "bob", "bun", "h", 0, 0),
    (6, "ann", "tea", "h", 1, 0),
    (7, "bob", "coffee", "h", 0, 0),
    (8, "cid", "bun", "a", 0, 0),
    (9, "ann", "bun", "h", 1, 1),
    (10, "bob", "tea", "a", 1, 1),
]
"""(at, who, what, place, click, paid)"""

ITEMS = [
    ("bun", "Sweet bun", "bakery", "Oven & Co"),
    ("coffee", "Coffee", "drinks", None),
    ("tea", None, None, None),
]
"""(what, title, kind, made_by): the item's code is its place here."""

USERS = [("ann", "Ulm"), ("bob", None), ("cid", "Bonn")]
"""(who, home_town): the user's code is her place here."""

Event = tuple[int, str, str, str]


def kiosk(
    folder: Path,
    *,
    rows: list[tuple[int, str, str, str, int, int]] = ROWS,
    items: list[tuple[str, Any, Any, Any]] | pl.DataFrame = ITEMS,
    positives: list[Event] | None = None,
    history_share: float = 0.0,
    **changes: Any,
) -> PreparedData:
    """Prepare the kiosk, with other rows, items, positives (at, who, what, place) or schema keys where given."""
    beside = None
    if positives is not None:
        beside = pl.DataFrame(positives, schema=["at", "who", "what", "place"], orient="row")
    tables = from_frames(
        Schema.checked({**SCHEMA, **changes}, "the kiosk"),
        pl.DataFrame(rows, schema=["at", "who", "what", "place", "click", "paid"], orient="row"),
        items=items
        if isinstance(items, pl.DataFrame)
        else pl.DataFrame(items, schema=["what", "title", "kind", "made_by"], orient="row"),
        users=pl.DataFrame(USERS, schema=["who", "home_town"], orient="row"),
        positives=beside,
    )
    return prepare(tables, folder, history_share=history_share)
