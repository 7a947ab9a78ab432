from __future__ import annotations

import datetime as dt
import math
from typing import Any

import polars as pl
import pytest

from llm4msr.data.sources.frames import read_table
from llm4msr.data.validate import Accepted, accept_interactions, accept_positives, check_rejected
from llm4msr.errors import InputError
from llm4msr.schema import Schema

from .tiny import log, schema


def accept(frame: pl.DataFrame, of: Schema | None = None) -> Accepted:
    return accept_interactions(read_table(frame, "interactions"), of or schema())


def times(values: list[Any], unit: str | None = None, dtype: Any = None) -> list[int]:
    frame = log()[: len(values)].with_columns(pl.Series("time", values, dtype=dtype))
    return accept(frame, schema(columns={"time_unit": unit})).rows["time"].to_list()


def one(**changed: Any) -> pl.DataFrame:
    """A good first row, and a second one with the change."""
    frame = log()[:2]
    values = [pl.Series(name, [frame[name][0], value], strict=False) for name, value in changed.items()]
    return frame.with_columns(*values)


def test_an_accepted_row_is_in_normal_form() -> None:
    assert accept(log()).rows.row(3, named=True) == {
        "row": 3,
        "user": "u0",
        "item": "i1",
        "scenario": 1,
        "time": 4_000_000,
        "label": 1,
        "behaviour": 0,
    }


@pytest.mark.parametrize(
    ("change", "reason", "raw"),
    [
        ({"user": None}, "user id missing", (None, "i1", "a", "2")),
        ({"user": ""}, "user id missing", (None, "i1", "a", "2")),
        ({"item": None}, "item id missing", ("u1", None, "a", "2")),
        ({"place": "c"}, "scenario unknown", ("u1", "i1", "c", "2")),
        ({"place": None}, "scenario unknown", ("u1", "i1", None, "2")),
        ({"time": None}, "time missing", ("u1", "i1", "a", None)),
        ({"time": float("nan")}, "time missing", ("u1", "i1", "a", None)),
        ({"time": float("inf")}, "not a time", ("u1", "i1", "a", "inf")),
        ({"time": 10**16}, "not a time", ("u1", "i1", "a", "10000000000000000")),
        ({"click": None}, "label missing", ("u1", "i1", "a", "2")),
        ({"click": float("nan")}, "label missing", ("u1", "i1", "a", "2")),
    ],
)
def test_a_row_that_cannot_be_used_is_set_aside(change: dict[str, Any], reason: str, raw: tuple[Any, ...]) -> None:
    accepted = accept(one(**change))
    assert accepted.rows["row"].to_list() == [0]
    assert accepted.rejected.rows() == [("interactions", 1, reason, *raw)]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([12, 13], ["12", "13"]),
        ([12.0, 13.0], ["12", "13"]),
        ([12.5, 13.0], ["12.5", "13"]),
        (["007", "7"], ["007", "7"]),
        (["a\x00b", "x" * 100_000], ["a\x00b", "x" * 100_000]),
    ],
)
def test_ids_are_text_and_whole_numbers_have_no_point(ids: list[Any], expected: list[str]) -> None:
    rows = accept(log()[:2].with_columns(pl.Series("user", ids), pl.Series("item", ids))).rows
    assert rows["user"].to_list() == expected
    assert rows["item"].to_list() == expected


def test_a_scenario_that_became_a_float_is_still_known() -> None:
    numbered = schema(scenarios=[{"value": "1"}, {"value": "2"}])
    accepted = accept(log()[:3].with_columns(pl.Series("place", [2.0, float("nan"), 1.0])), numbered)
    assert accepted.rows["scenario"].to_list() == [1, 0]
    assert accepted.rejected["reason"].to_list() == ["scenario unknown"]


@pytest.mark.parametrize(("unit", "scale"), [("s", 1_000_000), ("ms", 1_000), ("us", 1)])
def test_a_number_is_a_time_in_its_unit(unit: str, scale: int) -> None:
    assert times([0, 5, -5], unit) == [0, 5 * scale, -5 * scale]


def test_a_number_written_as_text_or_as_float_is_a_time_too() -> None:
    assert times(["1700000000"], "s") == [1_700_000_000_000_000]
    assert times([1.5], "s") == [1_500_000]


def test_dates_and_datetimes_are_times() -> None:
    moment = dt.datetime(1970, 1, 2, 0, 0, 1)
    assert times([moment], dtype=pl.Datetime("ns")) == [86_401_000_000]
    assert times([moment], dtype=pl.Datetime("ms")) == [86_401_000_000]
    assert times([dt.date(1970, 1, 2)]) == [86_400_000_000]


def test_a_datetime_with_a_zone_is_taken_to_utc() -> None:
    berlin = pl.Series([dt.datetime(1970, 1, 2)]).dt.replace_time_zone("Europe/Berlin")
    frame = log()[:1].with_columns(berlin.alias("time"))
    assert accept(frame, schema(columns={"time_unit": None})).rows["time"].to_list() == [82_800_000_000]


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("1970-01-02", 86_400_000_000),
        ("1970-01-02 00:00", 86_400_000_000),
        ("1970-01-02 00:00:01", 86_401_000_000),
        ("1970-01-02T00:00:01", 86_401_000_000),
        ("1970-01-02T00:00:01.5", 86_401_500_000),
        ("1970-01-02T00:00:01Z", 86_401_000_000),
        ("1970-01-02 00:00:01Z", 86_401_000_000),
        ("1970-01-02T00:00", 86_400_000_000),
        ("1970-01-02T00:00Z", 86_400_000_000),
        ("1970-01-02 00:00:01+00:00", 86_401_000_000),
        ("1970-01-02 02:00:01.5+02:00", 86_401_500_000),
        ("1970-01-02T00:00:01+0000", 86_401_000_000),
        (" 1970-01-02 ", 86_400_000_000),
    ],
)
def test_iso_text_is_a_time(text: str, microseconds: int) -> None:
    assert times([text]) == [microseconds]


@pytest.mark.parametrize("text", ["soon", "1970-02-30", "1970-01-02 25:00:00", "02.01.1970", "1700000000"])
def test_other_text_is_set_aside(text: str) -> None:
    frame = log()[:2].with_columns(pl.Series("time", ["1970-01-02", text]))
    accepted = accept(frame, schema(columns={"time_unit": None}))
    assert accepted.rejected.rows() == [("interactions", 1, "not a time", "u1", "i1", "a", text)]


def test_a_number_without_a_unit_is_refused() -> None:
    with pytest.raises(InputError, match=r"the frame interactions: the time column 'time' is a number; .* time_unit"):
        times([1])


def test_a_type_that_is_no_time_is_refused() -> None:
    with pytest.raises(InputError, match="the time column 'time' has type Boolean, which is not a time"):
        times([True])


@pytest.mark.parametrize(
    "labels",
    [[1, 0], [1.0, 0.0], [True, False], ["1", "0"], ["True", "false"], pl.Series(["1", "0"], dtype=pl.Categorical)],
)
def test_labels_are_0_or_1_in_any_type(labels: Any) -> None:
    rows = accept(log()[:2].with_columns(pl.Series("click", labels))).rows
    assert rows["label"].to_list() == [1, 0]


@pytest.mark.parametrize(("label", "shown"), [(2, "2"), (0.5, "0.5"), (-1, "-1"), ("yes", "'yes'")])
def test_another_label_is_refused_with_its_row(label: Any, shown: str) -> None:
    frame = log()[:2].with_columns(pl.Series("click", ["0" if isinstance(label, str) else 0, label], strict=False))
    with pytest.raises(InputError) as error:
        accept(frame)
    assert f"the frame interactions: column 'click', row 1: the label {shown} is neither 0 nor 1" in str(error.value)
    assert "label_rule such as 'click > 3'" in str(error.value)


def test_a_behaviours_rule_reads_truths_and_refuses_what_is_no_number() -> None:
    of = schema(behaviours=[{"name": "bought", "rule": "bought > 0"}, {"name": "click"}])
    frame = log()[:2].with_columns(pl.Series("click", [1, 1]), pl.Series("bought", ["True", "False"]))
    assert accept(frame, of).rows["behaviour"].to_list() == [0, 1]
    assert accept(frame.with_columns(pl.Series("bought", [None, "1"])), of).rows["behaviour"].to_list() == [1, 0]
    with pytest.raises(InputError, match="column 'bought', row 1: 'yes' is no number, and the behaviour 'bought' has"):
        accept(frame.with_columns(pl.Series("bought", ["1", "yes"])), of)


@pytest.mark.parametrize("label", [math.nan, None])
def test_a_label_that_is_no_number_is_missing(label: float | None) -> None:
    accepted = accept(log()[:2].with_columns(pl.Series("click", [1.0, label])))
    assert (accepted.rows["label"].to_list(), accepted.rejected["reason"].to_list()) == ([1], ["label missing"])


def test_a_wrong_label_is_refused_even_where_its_row_is_set_aside() -> None:
    frame = log()[:2].with_columns(pl.Series("click", [0, 3]), pl.Series("place", ["a", "nowhere"]))
    with pytest.raises(InputError, match="row 1: the label 3 is neither 0 nor 1"):
        accept(frame)


def test_a_label_rule_makes_labels_and_a_missing_number_is_no_label() -> None:
    by_rating = schema(columns={"label": None, "label_rule": "rating > 3"})
    frame = log()[:5].with_columns(pl.Series("rating", [3.0, 3.5, None, float("nan"), 5.0]))
    accepted = accept(frame, by_rating)
    assert accepted.rows["label"].to_list() == [0, 1, 1]
    assert accepted.rejected.select("row", "reason").rows() == [(2, "label missing"), (3, "label missing")]


def test_a_row_has_the_strongest_behaviour_that_holds() -> None:
    behaviours = [{"name": "bought", "rule": "paid > 0"}, {"name": "clicked"}]
    frame = log()[:4].with_columns(pl.Series("click", [0, 1, 1, 0]), pl.Series("paid", ["2", "2", None, "0"]))
    assert accept(frame, schema(behaviours=behaviours)).rows["behaviour"].to_list() == [0, 0, 1, -1]


@pytest.mark.parametrize("role", ["user", "item", "scenario", "time", "label"])
@pytest.mark.parametrize("nested", [pl.concat_list, pl.struct])
def test_a_column_of_lists_or_structs_is_named_with_its_role(role: str, nested: Any) -> None:
    column = {"scenario": "place", "label": "click"}.get(role, role)
    with pytest.raises(InputError, match=rf"interactions: column '{column}' \(.*{role}.*\) is a .*one plain value"):
        accept(log().with_columns(nested(column).alias(column)))


@pytest.mark.parametrize("role", ["user", "item", "scenario", "time", "label"])
def test_a_missing_column_is_named_with_the_nearest(role: str) -> None:
    column = {"scenario": "place", "label": "click"}.get(role, role)
    with pytest.raises(InputError) as error:
        accept(log().rename({column: column + "s"}))
    message = f"the frame interactions: has no column '{column}' (the schema's {role} column); did you mean '{column}s'"
    assert message in str(error.value)


def test_the_column_of_a_rule_must_exist() -> None:
    by_rating = schema(columns={"label": None, "label_rule": "rating > 3"})
    with pytest.raises(InputError, match=r"has no column 'rating' \(used in label_rule = 'rating > 3'\)"):
        accept(log(), by_rating)


def history(**changed: Any) -> pl.DataFrame:
    return pl.DataFrame({"user": ["u0"], "item": ["i9"], "place": ["b"], "time": [3], **changed})


def test_a_row_of_the_history_has_the_behaviour_it_names() -> None:
    two = schema(behaviours=[{"name": "bought"}, {"name": "clicked"}])
    accepted = accept_positives(read_table(history(behaviour=["clicked"]), "positives"), two)
    assert accepted.rows.rows() == [(0, "u0", "i9", 1, 3_000_000, 1, 1)]


def test_a_history_without_behaviours_has_the_first() -> None:
    assert accept_positives(read_table(history(), "positives"), schema()).rows["behaviour"].to_list() == [0]


@pytest.mark.parametrize("name", ["clik", None])
def test_an_unknown_behaviour_is_refused(name: str | None) -> None:
    table = read_table(history(behaviour=pl.Series([name], dtype=pl.String)), "positives")
    with pytest.raises(InputError, match=f"positives: the behaviour {name!r} is not in the schema .it has click"):
        accept_positives(table, schema())


def test_few_rejected_rows_are_let_pass() -> None:
    rejected = accept(one(user=None)).rejected
    check_rejected(rejected, total=20, most=0.05)
    assert rejected.height == 1


def test_too_many_rejected_rows_stop_with_reasons_and_first_rows() -> None:
    rejected = accept(log(user=[None, ""] + ["u"] * 8, place=["a"] * 5 + ["x"] * 5)).rejected
    with pytest.raises(InputError) as error:
        check_rejected(rejected, total=10, most=0.05)
    assert str(error.value) == (
        "7 of 10 rows cannot be used, more than the share 0.05 that is allowed: "
        "2 x user id missing (first: interactions row 0, user None, item i0, scenario a, time 1); "
        "5 x scenario unknown (first: interactions row 5, user u, item i1, scenario x, time 6). "
        "Correct them, or raise the allowed share (--max-rejected)"
    )
