"""Nothing of the validation and test rows reaches what training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4msr.data.prepared import PreparedData

from .tiny import log, prepared, schema

FIELDS = schema(
    [
        {"name": "user", "side": "user", "min_count": 1},
        {"name": "item", "side": "item", "min_count": 1},
        {"name": "hour", "side": "context", "min_count": 1},
        {"name": "price", "side": "context", "kind": "numeric"},
        {"name": "tags", "side": "context", "kind": "multi", "min_count": 1, "max_values": 2},
        {"name": "colour", "side": "item", "min_count": 1},
    ],
    item_text={"title": "title"},
)
BASE: dict[str, list[Any]] = {
    "price": [float(k) for k in range(10)],
    "tags": ["new", "new|sale"] * 5,
    "colour": ["red", "blue"] * 5,
    "title": ["a lamp", "a chair"] * 5,
}
TRAINING = 8


def with_future(folder: Path, future: dict[str, list[Any]]) -> PreparedData:
    """The log with the values of the last two rows replaced."""
    whole = log(**BASE)
    changed = {name: [*whole[name].to_list()[:TRAINING], *values] for name, values in future.items()}
    return prepared(folder, log(**{**BASE, **changed}), FIELDS)


def training(data: PreparedData) -> dict[str, Any]:
    """All that training reads: the columns' first rows, the ids behind the codes, vocabularies and statistics."""
    assert data.split.valid == TRAINING
    rows = slice(0, TRAINING)
    columns = {spec.name: data.field(spec.name)[rows].tolist() for spec in data.schema.fields}
    core = {name: getattr(data, name)[rows].tolist() for name in ("scenario", "time", "label")}
    ids = [data.users["user"][data.user[rows]].to_list(), data.items["item"][data.item[rows]].to_list()]
    titles = data.items["title"][data.item[rows]].to_list()
    words = {spec.name: data.vocabulary(spec.name).values.to_list() for spec in FIELDS.fields if spec.kind != "numeric"}
    price = data.records["price"]
    return {
        **columns,
        **core,
        "ids": ids,
        "titles": titles,
        "words": words,
        "price": [price.mean, price.deviation],
    }


PLANTED: dict[str, list[Any]] = {
    "user": ["a-planted", "z-planted"],
    "item": ["a-planted", "z-planted"],
    "hour": ["planted", "planted"],
    "price": [1e6, -1e6],
    "tags": ["planted|new", "planted"],
    "colour": ["planted", "planted"],
    "title": ["planted", "planted"],
}


@pytest.mark.parametrize("column", [*PLANTED, "all"])
def test_a_word_planted_in_the_future_is_nowhere_in_training(tmp_path: Path, column: str) -> None:
    planted = PLANTED if column == "all" else {column: PLANTED[column]}
    base = training(with_future(tmp_path / "base", {}))
    assert training(with_future(tmp_path / "planted", planted)) == base
    assert "planted" not in str(base)


def test_a_planted_value_is_unknown_where_it_occurs(tmp_path: Path) -> None:
    data = with_future(tmp_path / "data", PLANTED)
    for name in ("user", "item", "hour", "colour"):
        assert data.field(name)[TRAINING:].tolist() == [0, 0]
    assert data.field("tags")[TRAINING:].tolist() == [[0, 1], [0, -1]]
    for path in (data.path / "vocabulary").iterdir():
        assert pl.read_parquet(path)["value"].str.contains("planted").any() is False


WORD = st.sampled_from(["new", "u0", "i1", "9", "", "zzz", None])
FUTURE = st.fixed_dictionaries(
    {
        **{name: st.lists(WORD, min_size=2, max_size=2) for name in ("hour", "tags", "colour", "title")},
        **{
            name: st.lists(st.sampled_from(["u0", "i1", "zzz", "0"]), min_size=2, max_size=2)
            for name in ("user", "item")
        },
        "price": st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=2),
        "click": st.lists(st.integers(0, 1), min_size=2, max_size=2),
        "place": st.lists(st.sampled_from(["a", "b"]), min_size=2, max_size=2),
        "time": st.lists(st.integers(9, 10**6), min_size=2, max_size=2),
    }
)


@settings(max_examples=12, deadline=None)
@given(FUTURE)
def test_no_change_of_the_future_changes_training(
    tmp_path_factory: pytest.TempPathFactory, future: dict[str, list[Any]]
) -> None:
    folder = tmp_path_factory.mktemp("leak")
    changed, base = with_future(folder / "changed", future), with_future(folder / "base", {})
    assert training(changed) == training(base)
    assert np.all(changed.time[TRAINING:] >= changed.split.valid_time)
