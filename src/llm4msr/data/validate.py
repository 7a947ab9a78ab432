"""Check raw rows: each one is either accepted, in one normal form, or set aside with a reason."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from llm4msr.data.raw import as_id, as_text
from llm4msr.data.tables import MALFORMED, EntitySide, Table, rejects
from llm4msr.errors import InputError
from llm4msr.schema import Columns, Rule, Schema
from llm4msr.times import MICROSECONDS

_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_NO_LABEL = 2
"""Marks a label that is neither 0 nor 1."""

_TIMES = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M")
"""Formats of times given as text. A time zone may follow, and a space may replace the T."""

UNKNOWN_SCENARIO = "scenario unknown"
REASONS = ("user id missing", "item id missing", UNKNOWN_SCENARIO, "time missing", "not a time", "label missing")
_HINTS = {
    "not a time": "; is time_unit right, and a text as in ISO 8601?",
    "label missing": "; does the column of label or label_rule hold numbers?",
}


@dataclass(frozen=True)
class Accepted:
    """The accepted rows of one table in normal form, and the rows set aside.

    `rows`: row (number in the frame), user and item (int64 if the ids are integers in all tables, else text), scenario
    (index in the schema), time (microseconds since 1970), label (0 or 1) and behaviour (index in the schema, -1 for
    none). `rejected`: table, row, reason, and the user, item, scenario and time as text.
    """

    rows: pl.DataFrame
    rejected: pl.DataFrame


def accept_interactions(table: Table, schema: Schema, whole: frozenset[EntitySide] = frozenset()) -> Accepted:
    """Check the impressions. The ids of the sides in `whole` are integers and stay integers.

    Raises `InputError` for a missing column, a label that is neither 0 nor 1, or a text that a behaviour's rule cannot
    read as a number.
    """
    label = _label(table, schema)
    behaviour = pl.lit(-1, dtype=pl.Int16)
    for index, kind in reversed(list(enumerate(schema.behaviours))):
        holds = label == 1 if kind.rule is None else _behaviour(table, kind.rule, kind.name)
        behaviour = pl.when(holds).then(pl.lit(index, dtype=pl.Int16)).otherwise(behaviour)
    return _accept(table, schema, "interactions", label, behaviour, whole)


def accept_positives(
    table: Table, schema: Schema, whole: frozenset[EntitySide] = frozenset(), part: str = "positives"
) -> Accepted:
    """Check a history table. Every row is a positive; the column `behaviour` names its behaviour.

    If there is no such column, all rows have the schema's first behaviour. Raises `InputError` for a missing column,
    and for a behaviour that is missing or not in the schema. `part` is the table's role in `rejected`.
    """
    behaviour = pl.lit(0, dtype=pl.Int16)
    if "behaviour" in table.columns():
        names = {kind.name: index for index, kind in enumerate(schema.behaviours)}
        code = pl.col("behaviour").cast(pl.String).replace_strict(names, default=-1, return_dtype=pl.Int16)
        unknown = table.collect(pl.col("behaviour").filter(code == -1).head(1))
        if unknown.height:
            raise InputError(
                f"{table.name}: the behaviour {unknown.item()!r} is not in the schema (it has {', '.join(names)})"
            )
        behaviour = code
    return _accept(table, schema, part, pl.lit(1.0), behaviour, whole)


def _accept(
    table: Table, schema: Schema, part: str, label: pl.Expr, behaviour: pl.Expr, whole: frozenset[EntitySide]
) -> Accepted:
    columns = schema.columns
    for role, column in (
        ("user", columns.user),
        ("item", columns.item),
        ("scenario", columns.scenario),
        ("time", columns.time),
    ):
        table.require(column, f"the schema's {role} column")
    types = table.frame.collect_schema()
    scenarios = pl.Enum([s.value for s in schema.scenarios])  # several times as fast as `replace_strict`
    raw_scenario = as_text(pl.col(columns.scenario), types[columns.scenario])
    numbered = Table(table.name, table.frame.with_row_index("__row"), table.malformed)
    rows = numbered.collect(
        pl.col("__row").alias("row"),
        as_id(columns.user, types[columns.user], whole="user" in whole).alias("user"),
        as_id(columns.item, types[columns.item], whole="item" in whole).alias("item"),
        raw_scenario.cast(scenarios, strict=False).to_physical().cast(pl.Int16).alias("scenario"),
        _as_microseconds(table, schema, types).alias("time"),
        label.cast(pl.Int8).alias("label"),
        behaviour.alias("behaviour"),
    )
    wrong = rows["row"].filter(rows["label"] == _NO_LABEL)
    if len(wrong) and columns.label is not None:
        raise _wrong_label(numbered, columns.label, wrong[:1])
    fit = rows.select(pl.all_horizontal(pl.all().is_not_null())).to_series()
    if fit.all():
        return Accepted(rows, table.set_aside(part))
    rejected = _rejected(numbered, part, rows.filter(~fit), columns, types)
    return Accepted(rows.filter(fit), pl.concat([table.set_aside(part), rejected]))


def _rejected(numbered: Table, part: str, unfit: pl.DataFrame, columns: Columns, types: pl.Schema) -> pl.DataFrame:
    """Describe the `unfit` rows, which lack some value in normal form: the first reason, and the raw values."""
    raw = numbered.replace(numbered.frame.filter(pl.col("__row").is_in(unfit["row"].implode()))).collect(
        as_text(pl.col(columns.scenario), types[columns.scenario]).alias("raw_scenario"),
        as_text(pl.col(columns.time), types[columns.time]).alias("raw_time"),
    )
    unfit = pl.concat([unfit, raw], how="horizontal")
    checked = zip(("user", "item", "scenario", "raw_time", "time", "label"), REASONS, strict=True)
    reason = pl.coalesce(pl.when(pl.col(name).is_null()).then(pl.lit(reason)) for name, reason in checked)
    return rejects(
        {
            "table": [part] * unfit.height,
            "row": numbered.numbers(unfit["row"]),
            "reason": unfit.select(reason.alias("reason")).to_series(),
            "user": unfit["user"],
            "item": unfit["item"],
            "scenario": unfit["raw_scenario"],
            "time": unfit["raw_time"],
        }
    )


def check_rejected(rejected: pl.DataFrame, total: int, most: float, where: str = "") -> None:
    """Raise `InputError` if more than the share `most` of all rows was set aside.

    The message has each reason with its first row. `where` names the table's file.
    """
    if rejected.height <= most * total:
        return
    parts = []
    for reason, group in rejected.sort("row").group_by("reason", maintain_order=True):
        first = group.row(0, named=True)
        values = [f", {key} {first[key]}" for key in ("user", "item", "scenario", "time") if reason[0] != MALFORMED]
        place = f"{first['table']} row {first['row']}"
        hint = _HINTS.get(reason[0], "")
        parts.append(f"{group.height} x {reason[0]} (first: {place}{''.join(values)}{hint})")
    place = f"{where}: " if where else ""
    raise InputError(
        f"{place}{rejected.height} of {total} rows cannot be used, more than the share {most:g} that is allowed: "
        f"{'; '.join(parts)}. Correct them, or raise the allowed share (--max-rejected)"
    )


def _as_microseconds(table: Table, schema: Schema, types: pl.Schema) -> pl.Expr:
    name, unit = schema.columns.time, schema.columns.time_unit
    dtype, value = types[name], pl.col(name)
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        return value.cast(pl.Datetime("us")).cast(pl.Int64)
    if unit is not None and (dtype.is_numeric() or dtype == pl.String):
        microseconds = value.cast(pl.Float64, strict=False) * MICROSECONDS[unit]
        inside = microseconds.is_finite() & (microseconds.abs() < 2**53)  # larger floats are not exact
        return pl.when(inside).then(microseconds).round().cast(pl.Int64, strict=False)
    if dtype.is_numeric() or (dtype == pl.String and _first_is_a_number(table, name)):
        raise InputError(
            f"{table.name}: the time column {name!r} is a number; say what it counts: time_unit = 's', 'ms' or 'us'"
        )
    if dtype == pl.String:
        text = value.str.strip_chars().str.replace(" ", "T", literal=True).str.replace("Z$", "+00:00")
        parsed = [text.str.to_datetime(form, time_unit="us", strict=False) for form in _TIMES]
        zoned = [text.str.to_datetime(f"{form}%:z", time_unit="us", time_zone="UTC", strict=False) for form in _TIMES]
        days = text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
        return pl.coalesce(*parsed, *(moment.dt.replace_time_zone(None) for moment in zoned), days).cast(pl.Int64)
    raise InputError(f"{table.name}: the time column {name!r} has type {dtype}, which is not a time")


def _first_is_a_number(table: Table, column: str) -> bool:
    first = table.collect(pl.col(column).drop_nulls().head(1).cast(pl.Float64, strict=False)).to_series()
    return len(first) > 0 and first[0] is not None


def _label(table: Table, schema: Schema) -> pl.Expr:
    columns = schema.columns
    if columns.label_rule is not None:
        return _rule(table, columns.label_rule, "label_rule").cast(pl.Float64)
    assert columns.label is not None  # the schema checks this
    table.require(columns.label, "the schema's label column")
    value = _as_number(table, columns.label)
    numeric = table.frame.collect_schema()[columns.label].is_numeric()
    present = value if numeric else pl.col(columns.label)  # NaN is missing, a text that is not a number is wrong
    wrong = pl.when(present.is_not_null()).then(pl.lit(_NO_LABEL, dtype=pl.Float64))
    return pl.when((value == 0) | (value == 1)).then(value).otherwise(wrong)


def _wrong_label(numbered: Table, column: str, row: pl.Series) -> InputError:
    """The error for the first row (`row` has one element) whose label is neither 0 nor 1."""
    found = numbered.replace(numbered.frame.filter(pl.col("__row") == row[0])).collect(pl.col(column)).item()
    return InputError(
        f"{numbered.name}: column {column!r}, row {numbered.numbers(row)[0]}: the label {found!r} is neither 0 nor 1; "
        f"correct it, or replace label by a label_rule such as '{column} > 3'"
    )


def _rule(table: Table, text: str, where: str) -> pl.Expr:
    rule = Rule.parse(text)
    table.require(rule.column, f"used in {where} = {text!r}")
    return rule.holds(_as_number(table, rule.column))


def _behaviour(table: Table, text: str, name: str) -> pl.Expr:
    """The rule of a behaviour, as an expression.

    Raises `InputError` for a text that is not a number, since its row would silently lack the behaviour.
    """
    holds = _rule(table, text, f"behaviour {name}")
    column = Rule.parse(text).column
    if not table.frame.collect_schema()[column].is_numeric():
        wrong = _as_number(table, column).is_null() & pl.col(column).is_not_null()
        rows = table.replace(table.frame.with_row_index("__row").filter(wrong).head(1))
        found = rows.collect(pl.col("__row"), pl.col(column).alias("value"))
        if found.height:
            row, value = rows.numbers(found["__row"])[0], found["value"][0]
            raise InputError(
                f"{table.name}: column {column!r}, row {row}: {value!r} is no number, and the behaviour {name!r} "
                f"has the rule {text!r}; correct it"
            )
    return holds


def _as_number(table: Table, column: str) -> pl.Expr:
    """The column as numbers; null where there is none. The text "true" is 1, "false" is 0.

    NaN becomes null too, since polars would compare it as greater than any number.
    """
    value, dtype = pl.col(column), table.frame.collect_schema()[column]
    if isinstance(dtype, pl.Categorical | pl.Enum):  # polars does not cast these to numbers
        value = value.cast(pl.String)
    number = value.cast(pl.Float64, strict=False).fill_nan(None)
    if not isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return number
    return pl.when(value.is_in(_TRUE)).then(1.0).when(value.is_in(_FALSE)).then(0.0).otherwise(number)
