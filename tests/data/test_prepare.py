from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.errors import InputError

from .tiny import log, prepared, schema

SECOND = 1_000_000
FIELDS: list[dict[str, Any]] = [
    {"name": "user", "side": "user", "min_count": 1},
    {"name": "shade", "side": "item", "column": "colour", "min_count": 1},
    {"name": "price", "side": "item", "kind": "numeric"},
    {"name": "tags", "side": "item", "kind": "multi", "max_values": 3, "min_count": 1},
    {"name": "hour", "side": "context"},
]
ITEMS = pl.DataFrame(
    {
        "item": ["i1", "i0", "i5"],
        "colour": ["red", None, "blue"],
        "price": [3.0, 1.0, 9.0],
        "tags": ["new|sale", "", "x"],
    }
)


def columns(data: PreparedData) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (data.path / "columns").iterdir()}


def test_the_rows_are_cut_by_time(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data")
    assert vars(data.split) == {
        "rows": 10,
        "valid": 8,
        "test": 9,
        "valid_time": 9 * SECOND,
        "test_time": 10 * SECOND,
    }
    assert data.time.tolist() == [second * SECOND for second in range(1, 11)]


def test_the_core_columns_hold_codes_scenarios_and_labels(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data")
    assert data.user.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert data.item.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    assert data.scenario.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 1]
    assert data.label.tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert data.users["user"].to_list() == ["u0", "u1", "u2"]
    assert data.items["item"].to_list() == ["i0", "i1"]


def test_every_kind_of_field_is_encoded(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", of=schema(FIELDS), items=ITEMS)
    assert data.field("user").tolist() == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]
    assert data.field("shade").tolist() == [1, 2] * 5
    assert data.vocabulary("shade").values.to_list() == ["", "red"]
    assert data.field("price").tolist() == [-1.0, 1.0] * 5
    assert data.field("tags").tolist() == [[-1, -1, -1], [1, 2, -1]] * 5
    assert data.field("hour").tolist() == [1, 1, 2, 2, 1, 0, 2, 1, 0, 1]
    assert data.vocabulary("hour").values.to_list() == ["9", "8"]


def test_items_have_all_their_columns_and_those_never_shown_too(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", of=schema(FIELDS, item_text={"title": "colour"}), items=ITEMS)
    assert data.items.rows() == [("i0", None, 1.0, ""), ("i1", "red", 3.0, "new|sale"), ("i5", "blue", 9.0, "x")]
    assert data.items.columns == ["item", "colour", "price", "tags"]


def test_fields_may_be_in_the_interactions_instead(tmp_path: Path) -> None:
    beside = prepared(tmp_path / "beside", of=schema(FIELDS), items=ITEMS)
    within = prepared(tmp_path / "within", log().join(ITEMS, on="item", how="left"), schema(FIELDS))
    assert columns(beside) == columns(within)


def test_the_manifest_counts(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", log(place=["a"] * 9 + ["x"]), max_rejected=0.1)
    assert data.manifest["counts"] == {
        "rows": 9,
        "users": 3,
        "items": 2,
        "positives": 3,
        "scenarios": {
            "a": {
                "train": {"rows": 7, "positive": 3},
                "valid": {"rows": 1, "positive": 0},
                "test": {"rows": 1, "positive": 0},
            },
            "b": {part: {"rows": 0, "positive": 0} for part in ("train", "valid", "test")},
        },
        "rejected": {"scenario unknown": 1},
    }
    assert data.manifest["recipe"] == {"source": "frames"}
    assert data.manifest["ratios"] == [8, 1, 1]


def test_the_positives_are_the_clicks_sorted_by_user_and_time(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", log(click=[0, 1, 0, 0, 0, 1, 0, 0, 0, 1]))
    assert data.positives.columns == ["user", "item", "scenario", "time", "behaviour"]
    assert data.positives.rows() == [(0, 1, 1, 10 * SECOND, 0), (1, 1, 0, 2 * SECOND, 0), (2, 1, 0, 6 * SECOND, 0)]


def test_the_positives_have_their_strongest_behaviour(tmp_path: Path) -> None:
    of = schema(behaviours=[{"name": "bought", "rule": "paid > 0"}, {"name": "clicked"}])
    data = prepared(tmp_path / "data", log(paid=[0, 0, 5, 5, 0, 0, 0, 0, 0, 0]), of)
    assert data.positives.select("user", "time", "behaviour").rows() == [
        (0, 1 * SECOND, 1),
        (0, 4 * SECOND, 0),
        (0, 7 * SECOND, 1),
        (0, 10 * SECOND, 1),
        (2, 3 * SECOND, 0),
    ]


def test_a_table_of_positives_replaces_the_clicks(tmp_path: Path) -> None:
    of = schema(behaviours=[{"name": "bought"}, {"name": "clicked"}])
    history = pl.DataFrame(
        {
            "user": ["u9", "u0", "u0"],
            "item": ["i9", "i0", "i1"],
            "place": ["b", "a", "b"],
            "time": [5, 3, 2],
            "behaviour": ["clicked", "bought", "clicked"],
        }
    )
    data = prepared(tmp_path / "data", of=of, positives=history)
    assert data.positives.rows() == [(0, 1, 1, 2 * SECOND, 1), (0, 0, 0, 3 * SECOND, 0), (3, 2, 1, 5 * SECOND, 1)]
    assert data.users["user"].to_list() == ["u0", "u1", "u2", "u9"]
    assert data.label.sum() == 4


def test_a_label_rule_makes_the_labels(tmp_path: Path) -> None:
    of = schema(columns={"label": None, "label_rule": "rating >= 4"})
    data = prepared(tmp_path / "data", log(rating=[1, 2, 3, 4, 5, 5, 4, 3, 2, 1]).drop("click"), of)
    assert data.label.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    assert data.positives.height == 4


@pytest.mark.parametrize(
    ("unit", "times"),
    [
        ("s", list(range(1, 11))),
        ("ms", [1000 * k for k in range(1, 11)]),
        ("us", [SECOND * k for k in range(1, 11)]),
        (None, [dt.datetime(1970, 1, 1, 0, 0, k) for k in range(1, 11)]),
        (None, [f"1970-01-01T00:00:{k:02}" for k in range(1, 11)]),
    ],
)
def test_the_way_a_time_is_written_does_not_matter(tmp_path: Path, unit: str | None, times: list[Any]) -> None:
    other = prepared(tmp_path / "other", log(time=times), schema(columns={"time_unit": unit}))
    assert columns(other) == columns(prepared(tmp_path / "data"))


def test_the_format_of_the_log_does_not_matter(tmp_path: Path) -> None:
    log().write_csv(tmp_path / "log.csv")
    log().write_parquet(tmp_path / "log.parquet")
    fingerprints = {
        prepared(tmp_path / str(number), source).fingerprint
        for number, source in enumerate(
            (log(), log().lazy(), log().to_pandas(), log().to_arrow(), tmp_path / "log.csv", tmp_path / "log.parquet")
        )
    }
    assert len(fingerprints) == 1


def test_ids_that_pandas_made_floats_are_still_whole(tmp_path: Path) -> None:
    frame = pd.DataFrame(log(item=[12, 13] * 5).to_dict(as_series=False)).astype({"item": float})
    items = pl.DataFrame({"item": [12, 13], "colour": ["red", "blue"]})
    data = prepared(tmp_path / "data", frame, schema([{"name": "colour", "side": "item"}]), items=items)
    assert data.items.rows() == [("12", "red"), ("13", "blue")]


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt32, pl.Int64, pl.UInt64])
def test_ids_that_are_whole_numbers_give_what_their_texts_give(tmp_path: Path, kind: Any) -> None:
    numbers: dict[str, Any] = {"user": [9, 10, 100, None, 9, 10, 100, 9, 10, 9], "item": [2, 100, 20, 9, 2] * 2}
    items = pl.DataFrame({"item": [100, 9, 2, 100, None, 55], "colour": ["red", None, "blue", "x", "y", "z"]})
    fields = schema([*FIELDS[:2], {"name": "item", "side": "item"}], item_text={"title": "hour"})

    def made(name: str, dtype: Any) -> PreparedData:
        frame = log(**numbers, time=[1, 1, 1, 1, 2, 2, 3, 3, 3, 3]).with_columns(pl.col("user", "item").cast(dtype))
        table = items.with_columns(pl.col("item").cast(dtype))
        return prepared(tmp_path / name, frame, fields, items=table, max_rejected=0.5)

    assert made("numbers", kind).fingerprint == made("texts", pl.String).fingerprint


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_rows_does_not_matter(tmp_path: Path, seed: int) -> None:
    ties = log(time=[1, 1, 1, 1, 2, 2, 2, 2, 3, 3])
    fields = schema([*FIELDS, {"name": "item", "side": "item"}], item_text={"title": "hour"})
    first = prepared(tmp_path / "first", ties, fields, items=ITEMS)
    shuffled = prepared(
        tmp_path / "shuffled",
        ties.sample(fraction=1, shuffle=True, seed=seed),
        fields,
        items=ITEMS.sample(fraction=1, shuffle=True, seed=seed),
    )
    assert columns(shuffled) == columns(first)
    assert shuffled.fingerprint == first.fingerprint


def test_the_input_is_not_changed(tmp_path: Path) -> None:
    frame, items = log().sample(fraction=1, shuffle=True, seed=0), ITEMS.clone()
    before = frame.clone()
    prepared(tmp_path / "data", frame, schema(FIELDS), items=items)
    assert frame.equals(before)
    assert items.equals(ITEMS)


def test_rows_at_the_time_of_the_cut_go_to_the_later_part(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", log(time=[1, 2, 3, 4, 5, 6, 7, 7, 7, 9]))
    assert (data.split.valid, data.split.test) == (6, 9)


def test_each_step_and_a_drifting_field_are_reported(tmp_path: Path) -> None:
    said: list[str] = []
    prepare(from_frames(schema(), log(hour=[*"abcdefghij"])), tmp_path / "data", report=said.append)
    assert said[0] == "reading and checking the interactions"
    assert any(line.startswith("warning: 100% of the test values of the field hour were not seen") for line in said)


def test_repeated_rows_and_infinite_numbers_are_kept_and_told_of(tmp_path: Path) -> None:
    said: list[str] = []
    rows = log(price=[1.0, float("inf"), float("-inf"), *[2.0] * 7])
    rows = pl.concat([rows, rows[3:5]])
    tables = from_frames(schema([{"name": "price", "side": "context", "kind": "numeric"}]), rows)
    data = prepare(tables, tmp_path / "data", report=said.append)
    assert data.rows == 12
    assert "2 of 12 rows of the frame interactions have the user, item, scenario and time of another one" in str(said)
    assert "warning: the field price is infinite in 2 rows; they count as missing" in said
    assert np.isnan(data.field("price")).tolist() == [False, True, True, *[False] * 9]


def test_another_split_is_possible(tmp_path: Path) -> None:
    data = prepare(from_frames(schema(), log()), tmp_path / "data", ratios=(5, 3, 2))
    assert (data.split.valid, data.split.test) == (5, 8)


def test_the_first_share_of_the_rows_can_be_history_alone(tmp_path: Path) -> None:
    whole = prepared(tmp_path / "whole")
    data = prepared(tmp_path / "data", history_share=0.5)
    assert data.time.tolist() == [second * SECOND for second in range(6, 11)]
    assert (data.split.valid, data.split.test, data.rows) == (4, 4, 5)
    assert data.positives.equals(whole.positives)
    assert data.manifest["history_share"] == 0.5


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_of_history_leaves_something_to_train_on(tmp_path: Path, share: float) -> None:
    with pytest.raises(InputError, match="expected a number from 0 to less than 1"):
        prepared(tmp_path / "data", history_share=share)


def test_a_field_of_the_rows_stays_that_when_it_is_a_text_too(tmp_path: Path) -> None:
    rows = log(level=["low", "low", "high"] * 3 + ["high"])
    fields = [{"name": "level", "side": "user", "min_count": 1}]
    plain = prepared(tmp_path / "plain", rows, schema(fields))
    texts = prepared(tmp_path / "texts", rows, schema(fields, user_text={"details": ["level"]}))
    assert plain.field("level").tolist() == texts.field("level").tolist()
    assert len(set(texts.field("level").tolist())) == 2
    assert texts.users["level"].to_list() == ["low", "low", "high"]


@pytest.mark.parametrize(("known", "message"), [(["u0", "u1"], "1 of 3 users"), (["u0"], "warning: 2 of 3 users")])
def test_users_without_a_row_of_their_own_are_told_of(tmp_path: Path, known: list[str], message: str) -> None:
    said: list[str] = []
    users = pl.DataFrame({"user": known, "age": [30] * len(known)})
    tables = from_frames(schema([{"name": "age", "side": "user", "min_count": 1}]), log(), users=users)
    prepare(tables, tmp_path / "data", report=said.append)
    assert f"{message} have no row in the frame users" in said


@pytest.mark.parametrize(("known", "more"), [(["0", "1"], "The logs have 'u0', the table has '0'"), ([], "")])
def test_a_table_with_none_of_the_users_is_refused(tmp_path: Path, known: list[str], more: str) -> None:
    users = pl.DataFrame(
        {"user": pl.Series(known, dtype=pl.String), "age": pl.Series([30] * len(known), dtype=pl.Int64)}
    )
    tables = from_frames(schema([{"name": "age", "side": "user", "min_count": 1}]), log(), users=users)
    with pytest.raises(InputError, match=f"the frame users: no user of the logs has a row there.*{more}"):
        prepare(tables, tmp_path / "data")


def test_a_column_that_some_files_lack_is_warned_of_if_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    log(extra=1).head(6).write_parquet(tmp_path / "log" / "a.parquet")
    log().tail(4).rename({"hour": "Hour"}).write_parquet(tmp_path / "log" / "b.parquet")
    said: list[str] = []
    prepare(from_frames(schema(), tmp_path / "log"), tmp_path / "data", report=said.append)
    (warning,) = [message for message in said if "files have no column" in message]
    assert warning.startswith("warning: ")
    assert "1 of 2 files have no column 'hour'" in warning


def test_events_of_a_scenario_that_was_taken_out_are_set_aside_however_many(tmp_path: Path) -> None:
    gone = log().select("user", "item", "place", "time").head(4).with_columns(place=pl.lit("gone"))
    data = prepare(from_frames(schema(), log(), events=gone), tmp_path / "data")
    assert data.manifest["counts"]["rejected"] == {"scenario unknown": 4}
    broken = gone.with_columns(place=pl.lit("a"), time=pl.lit(None, dtype=pl.Int64))
    with pytest.raises(InputError, match="4 of 4 rows cannot be used"):
        prepare(from_frames(schema(), log(), events=broken), tmp_path / "other")
