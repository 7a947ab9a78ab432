"""`prepare` of a log of choices only: sampled negatives become rows like others, and change nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llm4msr.data.negatives import Negatives
from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.data.split import Part
from llm4msr.errors import InputError
from llm4msr.knowledge.reason_config import ReasonConfig, make_writer

from .tiny import schema

SECOND = 1_000_000
ROWS, ITEMS = 100, 10
FIELDS: list[dict[str, Any]] = [
    {"name": "user", "side": "user", "min_count": 1},
    {"name": "item", "side": "item", "min_count": 1},
    {"name": "colour", "side": "item", "min_count": 1},
    {"name": "age", "side": "user", "kind": "numeric"},
    {"name": "moment", "side": "context", "min_count": 1},
]
COLOURS = pl.DataFrame({"item": [f"i{k}" for k in range(ITEMS)], "colour": [f"c{k % 4}" for k in range(ITEMS)]})


def choices(**changed: Any) -> pl.DataFrame:
    """A hundred clicks, one a second, of 20 users and 10 items; `moment` is different in each."""
    number = np.arange(ROWS)
    columns: dict[str, Any] = {
        "user": [f"u{k:02}" for k in number * 7 % 20],
        "item": [f"i{k}" for k in number * number // 3 % ITEMS],
        "place": np.where(number % 3 == 0, "a", "b"),
        "time": number,
        "click": 1,
        "moment": [f"m{k}" for k in number],
        "age": number * 7 % 20,
    }
    return pl.DataFrame({**columns, **changed})


def sampled_from(
    folder: Path, frame: pl.DataFrame | None = None, negatives: Negatives | None = None, **more: Any
) -> PreparedData:
    tables = from_frames(schema(FIELDS), choices() if frame is None else frame, items=COLOURS)
    return prepare(tables, folder, negatives=negatives, **more)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return sampled_from(tmp_path_factory.mktemp("plain") / "data")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return sampled_from(tmp_path_factory.mktemp("sampled") / "data", negatives=Negatives(ratio=2))


def table(data: PreparedData) -> pl.DataFrame:
    names = ("user", "item", "scenario", "time", "label")
    frame = pl.DataFrame({name: np.asarray(getattr(data, name)) for name in names})
    return frame.with_columns(pl.Series(f"field.{f.name}", np.asarray(data.field(f.name))) for f in data.schema.fields)


def test_the_choices_stay_and_the_sampled_rows_are_labelled_0(plain: PreparedData, data: PreparedData) -> None:
    before, after = table(plain), table(data)
    key = ["user", "item", "scenario", "time", "label"]
    assert after.filter(pl.col("label") == 1).select(key).equals(before.select(key))
    assert Counter(after["label"]) == {1: ROWS, 0: data.rows - ROWS}
    assert 150 < data.rows - ROWS <= 2 * ROWS


def test_a_sampled_row_has_the_user_the_scenario_the_time_and_the_context_of_its_choice(data: PreparedData) -> None:
    rows = table(data)
    shared = ["user", "scenario", "time", "field.user", "field.age", "field.moment"]
    of_choice = rows.filter(pl.col("label") == 1).select(shared)
    sampled = rows.filter(pl.col("label") == 0)
    assert sampled.join(of_choice, on=shared, how="anti").height == 0
    assert set(sampled.group_by("time").len()["len"]) <= {1, 2}


def test_the_fields_of_a_sampled_item_are_its_own(data: PreparedData) -> None:
    colour = data.vocabulary("colour").values
    expected = [f"c{int(name[1:]) % 4}" for name in data.items["item"].gather(data.item)]
    assert colour.gather(np.asarray(data.field("colour")) - 1).to_list() == expected
    name = data.vocabulary("item").values
    assert name.gather(np.asarray(data.field("item")) - 1).equals(
        data.items["item"].gather(data.item), check_names=False
    )


def test_what_a_user_chose_in_a_scenario_is_not_sampled(data: PreparedData) -> None:
    rows, key = table(data), ["user", "item", "scenario"]
    sampled, chosen = rows.filter(pl.col("label") == 0), rows.filter(pl.col("label") == 1)
    assert sampled.join(chosen, on=key, how="semi").height == 0


@pytest.mark.parametrize("wider", [False, True], ids=["rows before the first", "a table of its own"])
def test_what_a_user_chose_in_the_history_alone_is_not_sampled_later(tmp_path: Path, wider: bool) -> None:
    pairs = np.random.default_rng(0).permutation(20 * ITEMS * 2)
    users, items, places = pairs // (2 * ITEMS), pairs // 2 % ITEMS, np.where(pairs % 2, "a", "b")
    log, older = (
        choices(user=[f"u{k:02}" for k in users[these]], item=[f"i{k}" for k in items[these]], place=places[these])
        for these in (slice(0, ROWS), slice(ROWS, 2 * ROWS))
    )
    tables = from_frames(schema(FIELDS), log, items=COLOURS, positives=older if wider else None)
    data = prepare(tables, tmp_path / "data", negatives=Negatives(ratio=2), history_share=0.4)
    sampled = table(data).filter(pl.col("label") == 0)
    assert sampled.height > 40
    chosen = sampled.join(data.positives, on=["user", "item", "scenario"], suffix="_chosen")
    assert data.positives.height == ROWS
    assert chosen.height > 0
    assert chosen.filter(pl.col("time_chosen") <= pl.col("time")).height == 0


def test_where_users_choose_again_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    random = np.random.default_rng(0)
    often = choices(item=[f"i{k}" for k in random.integers(0, 2, ROWS)])
    sampled_from(tmp_path / "often", often, Negatives(), report=told.append)
    assert any("users choose items again in a, b: their earlier choices may be negatives there" in t for t in told)


def test_the_parts_are_cut_at_the_same_times(plain: PreparedData, data: PreparedData) -> None:
    assert (plain.split.valid_time, plain.split.test_time) == (80 * SECOND, 90 * SECOND)
    assert (data.split.valid_time, data.split.test_time) == (80 * SECOND, 90 * SECOND)
    assert data.split.rows == data.rows == len(data.label)
    assert data.time[: data.split.valid].max() < 80 * SECOND <= data.time[data.split.valid]
    assert data.time[: data.split.test].max() < 90 * SECOND <= data.time[data.split.test]
    assert (np.diff(data.time) >= 0).all()


def test_the_history_has_no_sampled_row(plain: PreparedData, data: PreparedData) -> None:
    assert data.positives.height == ROWS
    assert data.positives.equals(plain.positives)


def test_users_and_items_are_the_same(plain: PreparedData, data: PreparedData) -> None:
    assert data.users.equals(plain.users)
    assert data.items.equals(plain.items)


def test_the_manifest_records_the_setting_and_counts_the_rows(plain: PreparedData, data: PreparedData) -> None:
    assert plain.manifest["negatives"] is None
    assert data.manifest["negatives"] == {"ratio": 2, "popularity": 1.0, "window": 2000, "seed": 0}
    counts = data.manifest["counts"]
    assert (counts["rows"], counts["positives"]) == (data.rows, ROWS)
    parts = [part for of_scenario in counts["scenarios"].values() for part in of_scenario.values()]
    assert sum(part["rows"] for part in parts) == data.rows
    assert sum(part["positive"] for part in parts) == ROWS


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path, data: PreparedData) -> None:
    shuffled = choices().sample(fraction=1, shuffle=True, seed=3)
    assert sampled_from(tmp_path / "data", shuffled, Negatives(ratio=2)).fingerprint == data.fingerprint


def test_the_seed_decides(tmp_path: Path, data: PreparedData) -> None:
    again = sampled_from(tmp_path / "again", negatives=Negatives(ratio=2))
    other = sampled_from(tmp_path / "other", negatives=Negatives(ratio=2, seed=1))
    assert again.fingerprint == data.fingerprint
    assert other.item.tolist() != data.item.tolist()


def test_the_setting_of_the_source_holds_unless_another_is_given(tmp_path: Path) -> None:
    tables = replace(from_frames(schema(FIELDS), choices(), items=COLOURS), negatives=Negatives(ratio=3))
    assert prepare(tables, tmp_path / "own").manifest["negatives"]["ratio"] == 3
    assert prepare(tables, tmp_path / "given", negatives=Negatives(ratio=1)).manifest["negatives"]["ratio"] == 1


def test_what_was_shown_and_left_stays_and_gets_no_negatives(tmp_path: Path) -> None:
    frame = choices(click=[k % 2 for k in range(ROWS)])
    data = sampled_from(tmp_path / "data", frame, Negatives(ratio=1))
    left = table(data).filter(pl.col("time") % (2 * SECOND) == 0)
    assert left["time"].to_list() == [2 * k * SECOND for k in range(ROWS // 2)]
    assert left["label"].sum() == 0
    assert data.label.sum() == ROWS // 2 == data.positives.height
    assert data.rows > ROWS


def test_no_part_draws_from_another(tmp_path: Path) -> None:
    item = [f"i{(0 if k < 80 else 3 if k < 90 else 6) + k % 3}" for k in range(ROWS)]
    frame = choices(user=[f"u{k:02}" for k in range(ROWS)], item=item, place="a")
    data = sampled_from(tmp_path / "data", frame, Negatives(ratio=2))
    sampled = [
        set(data.item[first:last][data.label[first:last] == 0].tolist())
        for first, last in (data.split.range("train"), data.split.range("valid"), data.split.range("test"))
    ]
    assert sampled == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}]


def test_an_item_field_that_only_the_log_has_is_refused(tmp_path: Path) -> None:
    tables = from_frames(schema(FIELDS), choices().join(COLOURS, on="item"))
    with pytest.raises(
        InputError,
        match=r"the frame interactions: the item field 'colour' \(column 'colour'\) is in the interactions only, so a "
        r"sampled negative would have its positive's value; give a table of items",
    ):
        prepare(tables, tmp_path / "data", negatives=Negatives())
    assert list(tmp_path.iterdir()) == []


def test_an_item_field_that_the_log_lends_as_a_text_is_refused(tmp_path: Path) -> None:
    lent = choices().with_columns(colour=pl.col("item"))
    tables = from_frames(schema(FIELDS, item_text={"details": ["colour"]}), lent)
    with pytest.raises(InputError, match=r"'colour'.*give a table of items"):
        prepare(tables, tmp_path / "data", negatives=Negatives(ratio=1))


def test_the_items_own_id_needs_no_table(tmp_path: Path) -> None:
    tables = from_frames(schema(FIELDS[:2]), choices())
    data = prepare(tables, tmp_path / "data", negatives=Negatives(ratio=1))
    assert np.asarray(data.field("item")).min() >= 1
    assert data.rows > ROWS


def test_no_item_is_too_rare_for_a_vocabulary_as_only_chosen_ones_would_be(tmp_path: Path) -> None:
    fields = [{**f, **({} if f.get("kind") == "numeric" else {"min_count": 3})} for f in FIELDS]
    rare = choices(item=[f"i{k % ITEMS}" if k else "i-once" for k in range(ROWS)])
    told: list[str] = []
    tables = from_frames(schema(fields), rare)
    plain = replace(tables, schema=schema([f for f in fields if f["name"] != "colour"]))
    data = prepare(plain, tmp_path / "data", negatives=Negatives(ratio=2), report=told.append)
    assert any("min_count does not hold for item" in message for message in told)
    assert {f.name: f.min_count for f in data.schema.fields if f.kind != "numeric"} == {
        "user": 3,
        "item": 1,
        "moment": 3,
    }
    ids = np.asarray(data.field("item")[: data.split.valid])
    assert (ids > 0).all()
    assert "i-once" in data.vocabulary("item").values.to_list()


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_what_was_logged_is_told_from_what_was_sampled(plain: PreparedData, data: PreparedData, part: Part) -> None:
    first, last = data.split.range(part)
    numbers = np.arange(data.rows)
    assert numbers[data.logged(part)].tolist() == [row for row in range(first, last) if data.label[row] == 1]
    assert numbers[plain.logged(part)].tolist() == list(range(*plain.split.range(part)))
    assert numbers[data.logged()].tolist() == np.flatnonzero(np.asarray(data.label)).tolist()


def test_a_scenarios_prompt_counts_what_was_logged(plain: PreparedData, data: PreparedData) -> None:
    writers = [make_writer(d, (), ReasonConfig(), None) for d in (plain, data)]
    assert writers[0].scenarios() == writers[1].scenarios()


def _with_context(random: np.random.Generator, value: pl.Series) -> pl.DataFrame:
    rows = len(value)
    frame = choices(number=1)[[0] * rows].drop("number", "moment")
    return frame.with_columns(
        user=pl.Series([f"u{k}" for k in random.integers(0, 900, rows)]),
        item=pl.Series([f"i{k}" for k in random.integers(0, ITEMS, rows)]),
        place=pl.Series(random.choice(["a", "b"], rows)),
        time=np.arange(rows),
        moment=value,
    )


@pytest.mark.parametrize("of_item", [lambda k: f"aisle {k % 4}", lambda k: 2.5 * k, lambda k: [f"tag {k}", "all"]])
def test_a_context_that_goes_with_the_item_is_refused(tmp_path: Path, of_item: Callable[[int], object]) -> None:
    random = np.random.default_rng(0)
    frame = _with_context(random, pl.Series(["x"] * 900))
    value = pl.Series([of_item(int(item[1:])) for item in frame["item"]])
    with pytest.raises(InputError, match=r"the context field 'moment' .* goes with the item.* declare it as an item"):
        sampled_from(tmp_path / "data", frame.with_columns(moment=value), Negatives())
    assert not (tmp_path / "data").exists()


def test_a_context_that_partly_goes_with_the_item_gets_a_warning(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = _with_context(random, pl.Series(random.integers(0, 9, 600).astype(str)))
    mixed = pl.when(pl.Series(random.random(600) < 0.5)).then("item").otherwise("moment")
    told: list[str] = []
    sampled_from(tmp_path / "data", frame.with_columns(moment=mixed), Negatives(), report=told.append)
    assert [message for message in told if "'moment'" in message and "goes with the item" in message]


def test_a_context_that_goes_with_the_item_where_it_has_a_value_is_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = _with_context(random, pl.Series(["x"] * 3000))
    offer = pl.when(pl.Series(random.random(3000) < 0.2)).then("item")
    for value in (offer, offer.otherwise(pl.lit("no offer"))):
        with pytest.raises(InputError, match=r"'moment' .*goes with the item"):
            sampled_from(tmp_path / "data", frame.with_columns(moment=value), Negatives())


def test_missing_negatives_are_told_of(tmp_path: Path) -> None:
    told: list[str] = []
    sampled_from(tmp_path / "some", choices(), Negatives(), report=told.append)
    assert not any("negatives could be drawn" in message for message in told)
    only = choices(user=[f"u{k}" for k in range(ROWS)], item="i0")
    sampled_from(tmp_path / "none", only, Negatives(), report=told.append)
    assert any("only 0 of 400 negatives could be drawn" in message for message in told)


@pytest.mark.parametrize("kind", ["hour", "place", "season", "constant", "rare", "city"])
def test_other_contexts_are_said_nothing_of(tmp_path: Path, kind: str) -> None:
    """Also one that goes with the scenario or with the time, and so, by way of these, with the item."""
    random = np.random.default_rng(0)
    frame = _with_context(random, pl.Series(random.integers(0, 24, 3000).astype(str)))
    place, half = frame["place"] == "a", pl.Series(np.arange(3000) < 1500)
    item = random.integers(0, 5, 3000) + 5 * (place if kind == "place" else half).to_numpy()
    value = {
        "hour": frame["moment"],
        "place": place.cast(pl.String),
        "season": half.cast(pl.String),
        "constant": pl.Series(["x"] * 3000),
        "rare": pl.Series([f"m{k}" for k in range(3000)]),
        "city": (frame["user"].str.slice(1).cast(pl.Int64) % 5).cast(pl.String),
    }[kind]
    if kind == "city":  # where users choose the items of their city alone
        item = 2 * value.cast(pl.Int64).to_numpy() + random.integers(0, 2, 3000)
    frame = frame.with_columns(moment=value, item=pl.Series([f"i{k}" for k in item]))
    told: list[str] = []
    sampled_from(tmp_path / "data", frame, Negatives(window=100), report=told.append)
    assert not [message for message in told if "goes with the item" in message]
