from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from llm4msr.errors import InputError
from llm4msr.schema import Behaviour, FieldSpec, ItemText, Rule, Scenario, Schema

TOML = """
name = "shop"

[columns]
user = "user_id"
item = "item_id"
scenario = "department"
time = "ts"
time_unit = "s"
label_rule = "rating > 3"

[[scenarios]]
value = "beauty"
name = "Beauty"

[[fields]]
name = "brand"
side = "item"

[item_text]
title = "title"
category = "path"
details = ["colour"]

[[behaviours]]
name = "liked"
rule = "rating >= 5"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "shop.toml"
    path.write_text(text, encoding="utf-8")
    return path


def raw(**changed: Any) -> dict[str, Any]:
    return {
        "name": "shop",
        "columns": {"user": "u", "item": "i", "scenario": "s", "time": "t", "label": "y"},
        "scenarios": [{"value": "a"}],
        "fields": [{"name": "u", "side": "user"}],
        **changed,
    }


def test_a_toml_file_becomes_a_schema(tmp_path: Path) -> None:
    schema = Schema.from_toml(written(tmp_path, TOML))
    assert schema.columns.label_rule == "rating > 3"
    assert schema.scenarios == (Scenario(value="beauty", name="Beauty"),)
    assert schema.fields == (FieldSpec(name="brand", side="item"),)
    assert schema.item_text == ItemText(title="title", category="path", details=("colour",))
    assert schema.behaviours == (Behaviour(name="liked", rule="rating >= 5"),)


def test_a_dumped_schema_is_the_same_when_read_again(tmp_path: Path) -> None:
    schema = Schema.from_toml(written(tmp_path, TOML))
    assert Schema.checked(schema.model_dump(mode="json"), "the dump") == schema


def test_left_out_parts_have_their_defaults() -> None:
    schema = Schema.checked(raw(), "shop.toml")
    assert schema.behaviours == (Behaviour(name="click"),)
    assert schema.fields[0].model_dump() == {
        "name": "u",
        "side": "user",
        "kind": "categorical",
        "column": "",
        "min_count": 2,
        "separator": None,
        "max_values": 8,
    }
    assert schema.fields[0].source == "u"
    assert schema.scenarios[0].title == "a"
    assert schema.item_text.columns == ()


def test_item_text_columns_come_in_reading_order() -> None:
    text = ItemText(details=("colour", "size"), category="path", title="title")
    assert text.columns == ("title", "path", "colour", "size")


def test_a_schema_cannot_be_changed() -> None:
    schema = Schema.checked(raw(), "shop.toml")
    with pytest.raises(ValidationError, match="frozen"):
        schema.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'; did you mean 'columns'?"),
        (
            {"fields": [{"name": "u", "side": "user", "kid": "numeric"}]},
            "unknown key 'fields #1 (u).kid'; did you mean 'kind'",
        ),
        ({"columns": {"user": "u", "item": "i", "scenario": "s", "label": "y"}}, "the key 'columns.time' is missing"),
        ({"scenarios": [{"value": "a"}, {"value": "a"}]}, "the scenario 'a' is declared twice"),
        ({"fields": [{"name": "u", "side": "user"}] * 2}, "the field 'u' is declared twice"),
        ({"behaviours": [{"name": "like"}, {"name": "like"}]}, "the behaviour 'like' is declared twice"),
        ({"behaviours": []}, "at least one behaviour is needed"),
        ({"behaviours": [{"name": "like", "rule": "rating"}]}, "'rating' is not a rule"),
        ({"scenarios": []}, "scenarios: "),
        ({"scenarios": [{"value": 1}]}, "scenarios #1.value: Input should be a valid string"),
        ({"fields": []}, "fields: "),
        ({"fields": [{"name": "../u", "side": "user"}]}, "fields #1 (../u).name: "),
        ({"fields": [{"name": "u", "side": "users"}]}, "fields #1 (u).side: "),
        ({"fields": [{"name": "u", "side": "user", "min_count": 0}]}, "fields #1 (u).min_count: "),
        ({"name": ""}, "name: "),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Schema.checked(raw(**change), "shop.toml")
    assert str(error.value).startswith("shop.toml: ")
    assert message in str(error.value)


@pytest.mark.parametrize("labels", [{}, {"label": "y", "label_rule": "rating > 3"}])
def test_exactly_one_of_label_and_label_rule_is_given(labels: dict[str, str]) -> None:
    columns = {"user": "u", "item": "i", "scenario": "s", "time": "t", **labels}
    with pytest.raises(InputError, match=r"columns: give either label .* or label_rule"):
        Schema.checked(raw(columns=columns), "shop.toml")


def test_an_unreadable_label_rule_is_refused() -> None:
    columns = {"user": "u", "item": "i", "scenario": "s", "time": "t", "label_rule": "rating is good"}
    with pytest.raises(InputError, match="'rating is good' is not a rule; write one comparison"):
        Schema.checked(raw(columns=columns), "shop.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: cannot be read: No such file"):
        Schema.from_toml(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b'name = "shop', b"\xff\xfe\x00"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shop.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"shop\.toml: is not valid TOML: "):
        Schema.from_toml(path)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("rating > 3", Rule(column="rating", operator=">", value=3)),
        ("rating>=3.5", Rule(column="rating", operator=">=", value=3.5)),
        ("  watch time  <  -2 ", Rule(column="watch time", operator="<", value=-2)),
        ("type == 1", Rule(column="type", operator="==", value=1)),
        ("type != 0", Rule(column="type", operator="!=", value=0)),
        ("age <= +40", Rule(column="age", operator="<=", value=40)),
    ],
)
def test_a_rule_is_column_operator_number(text: str, rule: Rule) -> None:
    assert Rule.parse(text) == rule


@pytest.mark.parametrize(
    "text", ["", "rating", "> 3", "rating >", "rating > three", "rating = 3", "rating > 3 or more"]
)
def test_anything_else_is_no_rule(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rule"):
        Rule.parse(text)


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (">", [False, False, True, None]),
        (">=", [False, True, True, None]),
        ("<", [True, False, False, None]),
        ("<=", [True, True, False, None]),
        ("==", [False, True, False, None]),
        ("!=", [True, False, True, None]),
    ],
)
def test_a_rule_compares_and_leaves_null_null(operator: str, expected: list[bool | None]) -> None:
    frame = pl.DataFrame({"rating": [2.0, 3.0, 4.0, None]})
    assert frame.select(Rule.parse(f"rating {operator} 3").holds(pl.col("rating"))).to_series().to_list() == expected


def test_a_rule_is_one_comparison() -> None:
    columns = {"user": "u", "item": "i", "scenario": "s", "time": "t", "label_rule": "clicked > 0 and quantity > 0"}
    with pytest.raises(InputError, match="is not a rule; write one comparison"):
        Schema.checked(raw(columns=columns), "shop.toml")
