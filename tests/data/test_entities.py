from __future__ import annotations

from typing import Any, Literal

import polars as pl
import pytest

from llm4msr.data.entities import Entities, gather_entities
from llm4msr.data.sources.frames import from_frames
from llm4msr.data.validate import accept_interactions
from llm4msr.errors import InputError
from llm4msr.schema import Schema

from .tiny import log, schema

COLOUR: list[dict[str, Any]] = [{"name": "colour", "side": "item"}]


def gather(
    side: Literal["user", "item"], of: Schema, interactions: pl.DataFrame | None = None, **tables: Any
) -> Entities:
    raw = from_frames(of, log() if interactions is None else interactions, **tables)
    rows = accept_interactions(raw.interactions, of).rows.sort("time")
    return gather_entities(raw, side, [rows, rows])


def test_ids_are_sorted_and_their_codes_are_positions() -> None:
    users = gather("user", schema())
    assert users.frame.rows() == [("u0",), ("u1",), ("u2",)]
    assert users.encode(pl.Series(["u2", "u0"])).to_list() == [2, 0]


def test_features_come_from_the_table_of_the_side_and_others_are_missing() -> None:
    items = gather("item", schema(COLOUR), items=pl.DataFrame({"item": ["i1", "i7"], "colour": ["red", "blue"]}))
    assert items.frame.rows() == [("i0", None), ("i1", "red"), ("i7", "blue")]


@pytest.mark.parametrize("rows", [{"item": [], "colour": []}, {"item": [None], "colour": ["red"]}])
def test_a_table_of_the_side_may_know_nobody(rows: dict[str, list[Any]]) -> None:
    empty = pl.DataFrame(rows, schema={"item": pl.String, "colour": pl.String})
    items = gather("item", schema(COLOUR), items=empty)
    assert items.frame.rows() == [("i0", None), ("i1", None)]
    assert items.without_row == 2


@pytest.mark.parametrize(("table", "interactions"), [([0.0, 1.0], [0, 1] * 5), ([0, 1], [0.0, 1.0] * 5)])
def test_float_and_integer_ids_meet(table: list[Any], interactions: list[Any]) -> None:
    items = pl.DataFrame({"item": table, "colour": ["red", "blue"]})
    assert gather("item", schema(COLOUR), log(item=interactions), items=items).frame.rows() == [
        ("0", "red"),
        ("1", "blue"),
    ]


def test_second_and_nameless_rows_are_set_aside() -> None:
    table = pl.DataFrame({"item": ["i0", "i0", None, "i1", ""], "colour": ["red", "blue", "red", "green", "red"]})
    items = gather("item", schema(COLOUR), items=table)
    assert items.frame.rows() == [("i0", "red"), ("i1", "green")]
    assert items.rejected.select("table", "row", "reason", "item").rows() == [
        ("items", 1, "second row of one item", "i0"),
        ("items", 2, "item id missing", None),
        ("items", 4, "item id missing", None),
    ]


def test_a_text_of_the_interactions_is_that_of_the_earliest_row() -> None:
    texts = ["late", "b", "c", "d", "e", "f", "g", "h", "early", "j"]
    frame = log(title=texts, time=[10, 2, 3, 4, 5, 6, 7, 8, 1, 9])
    items = gather("item", schema(item_text={"title": "title"}), frame)
    assert items.frame.rows() == [("i0", "early"), ("i1", "b")]


def test_a_table_may_have_a_column_called_row() -> None:
    table = pl.DataFrame({"item": ["i0", "i1"], "row": ["3", "4"]})
    items = gather("item", schema([{"name": "row", "side": "item"}]), items=table)
    assert items.frame.rows() == [("i0", "3"), ("i1", "4")]


def test_a_table_without_the_id_is_refused() -> None:
    with pytest.raises(InputError, match=r"the frame users: has no column 'user' \(the schema's user column\)"):
        gather("user", schema(), users=pl.DataFrame({"uzer": ["u0"]}))


def test_a_text_may_not_have_the_name_of_the_id() -> None:
    of = schema(columns={"item": "sku"}, item_text={"title": "item"})
    with pytest.raises(InputError, match="column 'item' is a field or a text, but the item column is 'sku'; rename"):
        gather("item", of, log().with_columns(sku="item"))
