"""The schema of a multi-scenario data set: its scenarios, the roles of its columns, its fields and its texts.

Someone who knows the data writes it once, as TOML::

    name = "shop"
    description = "an online shop"

    [columns]
    user = "user_id"
    item = "item_id"
    scenario = "department"
    time = "ts"
    time_unit = "s"
    label_rule = "rating > 3"

    [[scenarios]]
    value = "beauty"
    description = "creams and perfumes"

    [[fields]]
    name = "brand"
    side = "item"

    [item_text]
    title = "title"
    category = "category_path"

Unknown keys are errors, so that a misspelt key is never silently ignored.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import Field, model_validator

from llm4msr.validation import Settings, read_toml

Side = Literal["user", "item", "context"]
Kind = Literal["categorical", "numeric", "multi"]
TimeUnit = Literal["s", "ms", "us"]
FieldName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]

_RULE = re.compile(r"^\s*(?P<column>[^<>=!]+?)\s*(?P<operator>>=|<=|==|!=|>|<)\s*(?P<value>[-+]?\d+(\.\d+)?)\s*$")


class Rule(Settings):
    """A comparison of one column with a number, written ``column operator number``.

    >>> Rule.parse("rating > 3")
    Rule(column='rating', operator='>', value=3.0)
    """

    column: str
    operator: Literal[">", ">=", "<", "<=", "==", "!="]
    value: float

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read ``"rating > 3"``; raises `ValueError` on anything else."""
        match = _RULE.match(text)
        if match is None:
            raise ValueError(
                f"{text!r} is not a rule; write one comparison: column operator number, as in 'rating > 3'"
            )
        return cls.model_validate(match.groupdict())

    def holds(self, value: pl.Expr) -> pl.Expr:
        """Apply the rule to a numeric expression; the result is null where the value is null."""
        return {
            ">": value > self.value,
            ">=": value >= self.value,
            "<": value < self.value,
            "<=": value <= self.value,
            "==": value == self.value,
            "!=": value != self.value,
        }[self.operator]


class Columns(Settings):
    """Which column has which role. Exactly one of `label` (0 or 1) and `label_rule` is given."""

    user: str
    item: str
    scenario: str
    time: str
    time_unit: TimeUnit | None = None
    label: str | None = None
    label_rule: str | None = None

    @model_validator(mode="after")
    def _one_label(self) -> Columns:
        if (self.label is None) == (self.label_rule is None):
            raise ValueError("give either label (a column of 0 and 1) or label_rule (such as 'rating > 3')")
        if self.label_rule is not None:
            Rule.parse(self.label_rule)
        return self


class Scenario(Settings):
    """One place where items are shown: its value in the scenario column, and texts that describe it."""

    value: str
    name: str = ""
    description: str = ""
    notes: str = ""

    @property
    def title(self) -> str:
        """The name to show: `name`, or the raw value if no name was given."""
        return self.name or self.value


class FieldSpec(Settings):
    """One input field of the models.

    `categorical` values become ids. Values that training saw fewer than `min_count` times are unknown and have the
    id 0. `numeric` values are standardised with statistics of the training rows. A `multi` field has up to `max_values`
    values per row, from a list column or from text split at `separator`.
    """

    name: FieldName
    side: Side
    kind: Kind = "categorical"
    column: str = ""
    min_count: int = Field(default=2, ge=1)
    separator: str | None = None
    max_values: int = Field(default=8, ge=1, le=256)

    @property
    def source(self) -> str:
        """The column to read the field from: `column`, or else the column with the field's name."""
        return self.column or self.name


class ItemText(Settings):
    """The item's columns that a language model reads."""

    title: str | None = None
    category: str | None = None
    details: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Every text column, in reading order."""
        return tuple(c for c in (self.title, self.category) if c is not None) + self.details


class UserText(Settings):
    """The user's columns that a language model reads."""

    details: tuple[str, ...] = ()


class Behaviour(Settings):
    """A positive behaviour: its name in prompts, and the rule for rows that have it (default: the label is 1)."""

    name: str
    rule: str | None = None

    @model_validator(mode="after")
    def _rule_is_a_rule(self) -> Behaviour:
        if self.rule is not None:
            Rule.parse(self.rule)
        return self


class Schema(Settings):
    """A multi-scenario data set. `behaviours` are listed strongest first: a row gets the first one whose rule holds."""

    name: str = Field(min_length=1)
    description: str = ""
    user_description: str = ""
    item_description: str = ""
    columns: Columns
    scenarios: tuple[Scenario, ...] = Field(min_length=1)
    fields: tuple[FieldSpec, ...] = Field(min_length=1)
    item_text: ItemText = ItemText()
    user_text: UserText = UserText()
    behaviours: tuple[Behaviour, ...] = (Behaviour(name="click"),)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Schema:
        for what, names in (
            ("scenario", [s.value for s in self.scenarios]),
            ("scenario name", [s.title for s in self.scenarios]),
            ("field", [f.name for f in self.fields]),
            ("behaviour", [b.name for b in self.behaviours]),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"the {what} {twice[0]!r} is declared twice")
        if not self.behaviours:
            raise ValueError("at least one behaviour is needed")
        return self

    @property
    def read_columns(self) -> frozenset[str]:
        """The names of all columns that are read, of whatever table."""
        c = self.columns
        rules = [rule for rule in (c.label_rule, *(b.rule for b in self.behaviours)) if rule is not None]
        named = {c.user, c.item, c.scenario, c.time, *([] if c.label is None else [c.label])}
        named |= {Rule.parse(rule).column for rule in rules} | {field.source for field in self.fields}
        return frozenset(named.union(self.item_text.columns, self.user_text.details))

    @classmethod
    def from_toml(cls, path: Path) -> Schema:
        """Read a schema file; raises `InputError` that names the file and the key."""
        return cls.checked(read_toml(path), str(path))
