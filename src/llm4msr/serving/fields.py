"""The fields of a request's rows: looked up by user and item, given by the request, or missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate, islice
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.fields import PADDING, SEPARATOR, FieldRecord
from llm4msr.data.vocabulary import MISSING, UNKNOWN
from llm4msr.errors import nearest
from llm4msr.schema import FieldSpec, Schema, Side
from llm4msr.serving.lookup import Lookup
from llm4msr.serving.requests import RequestError

_SMALLEST_WITHOUT = -5
"""The smallest power of ten that polars writes without an exponent."""

KINDS = ("categorical", "multi", "numeric")
TYPES: dict[str, Any] = {"categorical": np.int32, "multi": np.int32, "numeric": np.float32}

Columns = dict[str, NDArray[Any]]
"""Encoded fields by kind, each `(rows, width of the kind)`."""


@dataclass(frozen=True)
class Place:
    """The position of a field: columns `start` to `stop` of its kind."""

    spec: FieldSpec
    start: int
    stop: int


def places(schema: Schema) -> dict[str, Place]:
    """The place of every field by name, in the order that the models expect."""
    found = {}
    for kind in KINDS:
        specs = [f for f in schema.fields if f.kind == kind]
        widths = [f.max_values if kind == "multi" else 1 for f in specs]
        for spec, width, stop in zip(specs, widths, accumulate(widths), strict=True):
            found[spec.name] = Place(spec, stop - width, stop)
    return found


def columns_of(schema: Schema, side: Side, kind: str) -> NDArray[np.intp]:
    """The columns of the fields of one side and one kind."""
    ranges = [
        np.arange(p.start, p.stop) for p in places(schema).values() if p.spec.side == side and p.spec.kind == kind
    ]
    return np.concatenate([np.zeros(0, np.intp), *ranges]).astype(np.intp)


def vocabulary_table(name: str) -> str:
    """The name of the look-up table of a field's vocabulary."""
    return f"field {name}"


def item_columns(schema: Schema) -> set[str]:
    """The raw columns of an item that fields and texts read."""
    return {f.source for f in schema.fields if f.side == "item"} | set(schema.item_text.columns)


def is_id(spec: FieldSpec, schema: Schema) -> bool:
    """Whether a field is the user's or the item's own id."""
    return spec.source == {"user": schema.columns.user, "item": schema.columns.item}.get(spec.side)


class FieldReader:
    """Assembles the encoded fields of rows.

    Args:
        schema: the schema of the data.
        records: what the prepared data say of each field.
        lookup: the vocabularies.
        users, items: the encoded fields of each, by kind; the last row is for unknown ones.
    """

    def __init__(
        self, schema: Schema, records: Mapping[str, FieldRecord], lookup: Lookup, users: Columns, items: Columns
    ) -> None:
        self._schema = schema
        self._records = records
        self._lookup = lookup
        self._places = places(schema)
        self._users, self._items = users, items
        self._user_columns = {kind: columns_of(schema, "user", kind) for kind in KINDS}
        self._item_columns = {kind: columns_of(schema, "item", kind) for kind in KINDS}
        self._scenario_fields = [
            f.name for f in schema.fields if f.side == "context" and f.source == schema.columns.scenario
        ]
        self._blank = {}
        for kind in KINDS:
            inside = [p for p in self._places.values() if p.spec.kind == kind]
            row = np.zeros(inside[-1].stop if inside else 0, dtype=np.int64 if kind != "numeric" else np.float32)
            for place in inside:
                row[place.start : place.stop] = self.encode(place.spec.name, None)
            self._blank[kind] = row

    def rows(self, user: int, items: NDArray[np.int32], scenario: int) -> Columns:
        """The fields of a user's rows with these items, given by their codes (-1: unknown).

        Context fields are missing, except those of the scenario.
        """
        found = {}
        for kind, blank in self._blank.items():
            rows = np.repeat(blank[None], len(items), 0)
            if len(columns := self._user_columns[kind]):
                rows[:, columns] = self._users[kind][user]
            if len(columns := self._item_columns[kind]):
                rows[:, columns] = self._items[kind][items]
            found[kind] = rows
        for name in self._scenario_fields:
            self.give(found, {name: self._schema.scenarios[scenario].value}, slice(None))
        return found

    def is_blank_item(self, item: int) -> bool:
        """Whether an item has no value in any field but its id's."""
        own = {n for p in self._places.values() if is_id(p.spec, self._schema) for n in range(p.start, p.stop)}
        for kind, columns in self._item_columns.items():
            values = zip(columns.tolist(), self._items[kind][item].tolist(), strict=True)
            blank = self._blank[kind]
            if any(v != blank[n] and v == v for n, v in values if kind != "categorical" or n not in own):
                return False
        return True

    def give(self, rows: Columns, features: Mapping[str, Any], row: int | slice, side: Side | None = None) -> None:
        """Put a request's own values into rows, in place. With a `side`, only its fields are allowed.

        Raises `RequestError` for an unknown field, an id field, or a value that the field cannot have.
        """
        for name, value in features.items():
            place = self._places.get(name)
            if place is None or (side is not None and place.spec.side != side):
                raise RequestError(422, "unknown_field", f"there is no field {name[:80]!r}; {self._known(name, side)}")
            if is_id(place.spec, self._schema):
                raise RequestError(422, "id_field", f"the field {name!r} is the id itself and cannot be given")
            rows[place.spec.kind][row, place.start : place.stop] = self.encode(name, value)

    def give_item(self, rows: Columns, columns: Mapping[str, Any], row: int) -> None:
        """Put a new item's raw columns into a row, except those that no field reads. Raises `RequestError`."""
        self.give(rows, self._of_item(columns), row, "item")

    def give_kept_item(self, rows: Columns, columns: Mapping[str, Any], row: int) -> None:
        """As `give_item`, for columns accepted earlier: values that this bundle's fields cannot have stay missing."""
        for name, value in self._of_item(columns).items():
            with suppress(RequestError):
                self.give(rows, {name: value}, row, "item")

    def _of_item(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """An item's field values by field name, from its raw columns."""
        fields = [p.spec for p in self._places.values() if p.spec.side == "item" and not is_id(p.spec, self._schema)]
        return {spec.name: columns[spec.source] for spec in fields if spec.source in columns}

    def encode(self, name: str, value: Any) -> Any:
        """Encode a raw value as `prepare` does: an id, a standardised number, or the ids of several values."""
        spec = self._places[name].spec
        if spec.kind == "numeric":
            return self._number(spec, value)
        if spec.kind == "categorical":
            if isinstance(value, list):
                raise RequestError(422, "wrong_value", f"the field {name!r} takes one value, not a list")
            return self._ids(name, [raw_text(value)])[0]
        texts = (raw_text(part).strip() for part in _parts(value, spec))
        ids = np.full(spec.max_values, PADDING, dtype=np.int64)
        chosen = list(islice((text for text in texts if text != MISSING), spec.max_values))
        ids[: len(chosen)] = self._ids(name, chosen)
        return ids

    def _number(self, spec: FieldSpec, value: Any) -> float:
        if value is None or (isinstance(value, str) and not value.strip()):
            return float("nan")
        try:
            if isinstance(value, list):
                raise ValueError
            record, number = self._records[spec.name], _as_number(value)
        except (ValueError, OverflowError):
            raise RequestError(422, "wrong_value", f"the field {spec.name!r} takes a number") from None
        with np.errstate(over="ignore", invalid="ignore"):
            standard = np.float32((number - record.mean) / record.deviation)
        return float(standard) if np.isfinite(standard) else float("nan")

    def _ids(self, name: str, texts: Sequence[str]) -> NDArray[np.int32]:
        return np.maximum(self._lookup.numbers(vocabulary_table(name), texts), UNKNOWN)

    def _known(self, name: str, side: Side | None) -> str:
        specs = [p.spec for p in self._places.values() if side is None or p.spec.side == side]
        return nearest(name[:80], [spec.name for spec in specs if not is_id(spec, self._schema)])


def _parts(value: Any, spec: FieldSpec) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, list):
        return value
    return raw_text(value).split(spec.separator if spec.separator is not None else SEPARATOR)


def raw_text(value: Any) -> str:
    """A JSON value as the text that `prepare` makes of it: whole numbers without a point, None as the missing value."""
    if isinstance(value, list):
        return ", ".join(raw_text(part) for part in value if part is not None)
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float_text(value)
    return str(value)


def _as_number(value: Any) -> float:
    """A value as `prepare` reads it; raises `ValueError` for a text that is no number there, such as "1_000"."""
    if not isinstance(value, str):
        return float(value)
    found = pl.Series([value]).cast(pl.Float64, strict=False)[0]
    if found is None:
        raise ValueError(value)
    return float(found)


def _float_text(value: float) -> str:
    """A float as text: whole numbers without a point, others as polars writes them, with exponents unlike Python's."""
    if value.is_integer() and abs(value) < 2**63:
        return str(int(value))
    if math.isnan(value):
        return MISSING
    digits, _, power = repr(value).partition("e")
    if not power:
        return digits
    if int(power) == _SMALLEST_WITHOUT:
        return format(Decimal(repr(value)), "f")
    return f"{digits}e{'+' if int(power) > 0 else ''}{int(power)}"
