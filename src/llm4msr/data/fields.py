"""Encode each field as one column of ids or of standardised numbers, fitted on the training rows only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.positions import Positions
from llm4msr.data.raw import as_text, as_texts
from llm4msr.data.split import PARTS, Part, Split
from llm4msr.data.values import Occurrences, RowValues
from llm4msr.data.vocabulary import MISSING, UNKNOWN, Vocabulary
from llm4msr.errors import InputError
from llm4msr.folders import MANIFEST
from llm4msr.schema import FieldSpec, Kind, Side
from llm4msr.validation import Settings

PADDING = -1
"""Fills the unused places of a row in a multi-valued field."""
SEPARATOR = "|"
"""Splits the text of a multi-valued field if the schema names no separator."""


class FieldRecord(Settings):
    """What a prepared folder says of a field.

    `size` is the number of ids with that of unknown values, and `unknown_share` the share of each part's rows that have
    an unknown value (None without rows); a numeric field has neither. `mean` and `deviation` standardise numbers, and
    `infinite` counts rows. `of_rows`: the values are of the rows, not of users or items.
    """

    kind: Kind
    side: Side
    size: int = 0
    unknown_share: dict[Part, float | None] | None = None
    mean: float = 0.0
    deviation: float = 1.0
    infinite: int = 0
    of_rows: bool = False


def records_of(manifest: dict[str, Any], folder: Path) -> dict[str, FieldRecord]:
    """The records in the manifest of `folder`, by the field's name."""
    fields = manifest["fields"].items()
    return {name: FieldRecord.checked(raw, f"{folder / MANIFEST}: fields: {name}") for name, raw in fields}


@dataclass(frozen=True)
class EncodedField:
    """A field encoded for all rows, with its vocabulary if it has one.

    `column` has ids, `(N,)` for a categorical field and `(N, L)` padded with -1 for a multi-valued one, in the smallest
    type that holds them (int8, int16 or int32). For a numeric field it has float32 numbers, `(N,)`, NaN where missing.
    """

    spec: FieldSpec
    column: NDArray[Any]
    vocabulary: Vocabulary | None
    record: FieldRecord


def encode_field(spec: FieldSpec, raw: RowValues, split: Split, where: str) -> EncodedField:
    """Fit a field on the training rows and encode all rows; `where` names the values' table in errors.

    Raises `InputError` if the values are not of the field's kind.
    """
    values = raw.values
    lists = isinstance(values.dtype, pl.List | pl.Array) and not values.dtype.inner.is_nested()
    if values.dtype.is_nested() and not (spec.kind == "multi" and lists):
        raise _unfit(spec, values, where, "one plain value a row (or, for a field of kind 'multi', a list of them)")
    try:
        return _encode(spec, raw, split, where)
    except pl.exceptions.PolarsError as error:
        raise _unfit(spec, values, where, f"what can be read ({str(error).splitlines()[0]})") from error


def encode_fitted(
    spec: FieldSpec, record: FieldRecord, vocabulary: Vocabulary | None, values: pl.Series, where: str
) -> NDArray[Any]:
    """Encode further values, such as those of users without a row, with what was fitted before.

    Args:
        spec: the field.
        record: what the prepared folder says of it.
        vocabulary: its vocabulary; None for a numeric field.
        values: the raw values.
        where: the name of their table, for errors.
    """
    if vocabulary is None:
        return _standardised(_numbers(spec, values, where), record.mean, record.deviation)
    if spec.kind == "multi":
        return _padded(spec, _elements(spec, values), vocabulary, len(values))
    return vocabulary.encode(values)


def _encode(spec: FieldSpec, raw: RowValues, split: Split, where: str) -> EncodedField:
    if spec.kind == "numeric":
        return _numeric(spec, raw, split, where)
    if spec.kind == "multi":
        return _multi(spec, raw, split)
    raw = _once(raw, split)
    vocabulary, ids = _fitted(spec, raw, split)
    unknown = (ids == UNKNOWN) & raw.values.is_not_null().to_numpy()
    column = raw.over_rows(_small(ids, vocabulary))
    return EncodedField(spec, column, vocabulary, _record(spec, vocabulary, raw, unknown, split))


def _fitted(spec: FieldSpec, raw: RowValues, split: Split) -> tuple[Vocabulary, NDArray[np.int32]]:
    """The vocabulary of the training rows, and the id of each value."""
    times = raw.training_times(split)
    if raw.are_ids:
        return Vocabulary.fit_ids(raw.values, spec.min_count, times)
    vocabulary = Vocabulary.fit(raw.values, spec.min_count, times)
    return vocabulary, vocabulary.encode(raw.values)


def _small(ids: NDArray[np.int32], vocabulary: Vocabulary) -> NDArray[np.signedinteger[Any]]:
    """The same ids and paddings in the smallest type that holds all ids of the vocabulary."""
    return ids.astype(np.min_scalar_type(-vocabulary.size))


def _once(raw: RowValues, split: Split) -> RowValues:
    """Keep integers that are given per row, such as an hour, once each: looking up a text for every row is slower."""
    if raw.occurrences is not None or not raw.values.dtype.is_integer():
        return raw
    different = raw.values.unique()
    return RowValues(different, Occurrences(Positions(different).of(raw.values), len(different), split))


def _unfit(spec: FieldSpec, values: pl.Series, where: str, expected: str) -> InputError:
    return InputError(
        f"{where}: column {spec.source!r} of the {spec.kind} field {spec.name!r} is {values.dtype}, "
        f"expected {expected}; convert the column"
    )


def _multi(spec: FieldSpec, raw: RowValues, split: Split) -> EncodedField:
    elements = _elements(spec, raw.values)
    times = raw.training_times(split)[elements["row"].to_numpy()]
    vocabulary = Vocabulary.fit(elements["value"], spec.min_count, times)
    ids = _padded(spec, elements, vocabulary, len(raw.values))
    unknown = (ids == UNKNOWN).any(axis=1)
    column = raw.over_rows(_small(ids, vocabulary))
    return EncodedField(spec, column, vocabulary, _record(spec, vocabulary, raw, unknown, split))


def _elements(spec: FieldSpec, values: pl.Series) -> pl.DataFrame:
    """The single values of a multi-valued column: row, value, and place in the row (below `max_values`)."""
    if values.dtype.is_nested():
        lists = as_texts(pl.col(values.name), values.dtype)
    else:
        separator = spec.separator if spec.separator is not None else SEPARATOR
        lists = as_text(pl.col(values.name), values.dtype).str.split(separator)
    return (
        values.to_frame()
        .select(lists.alias("value"), row=pl.int_range(pl.len()))
        .explode("value")
        .with_columns(pl.col("value").str.strip_chars())
        .filter(pl.col("value").is_not_null() & (pl.col("value") != MISSING))
        .with_columns(pl.int_range(pl.len()).over("row").alias("place"))
        .filter(pl.col("place") < spec.max_values)
    )


def _padded(spec: FieldSpec, elements: pl.DataFrame, vocabulary: Vocabulary, rows: int) -> NDArray[np.int32]:
    column = np.full((rows, spec.max_values), PADDING, dtype=np.int32)
    column[elements["row"].to_numpy(), elements["place"].to_numpy()] = vocabulary.encode(elements["value"])
    return column


def _numeric(spec: FieldSpec, raw: RowValues, split: Split, where: str) -> EncodedField:
    array = raw.over_rows(_numbers(spec, raw.values, where))
    known = array[: split.valid]
    known = known[np.isfinite(known)]
    mean, deviation = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
    if len(known) and known.min() == known.max():  # rounding may leave a deviation other than 0
        mean, deviation = float(known[0]), 1.0
    infinite = int(np.isinf(array).sum())
    record = FieldRecord(kind=spec.kind, side=spec.side, mean=mean, deviation=deviation, infinite=infinite)
    return EncodedField(spec, _standardised(array, mean, deviation), None, record)


def check_numbers(spec: FieldSpec, values: pl.Series, where: str) -> None:
    """Raise `InputError` if a value of a numeric field, of the table `where`, is not a number."""
    if not values.dtype.is_numeric() and not values.dtype.is_nested():
        _numbers(spec, values, where)


def _numbers(spec: FieldSpec, values: pl.Series, where: str) -> NDArray[np.float64]:
    """The values as numbers, NaN where there is none."""
    numbers = values.cast(pl.Float64, strict=False)
    bad = values.filter(values.is_not_null() & numbers.is_null())
    if values.dtype == pl.String:
        bad = bad.filter(bad.str.strip_chars() != "")
    if len(bad):
        raise InputError(
            f"{where}: the numeric field {spec.name!r} (column {spec.source!r}) holds {bad[0]!r}, which is not a "
            "number; correct it, or declare the field as categorical"
        )
    return numbers.fill_null(float("nan")).to_numpy().astype(np.float64, copy=False)


def _standardised(array: NDArray[np.float64], mean: float, deviation: float) -> NDArray[np.float32]:
    """Standardised float32 numbers; NaN where one is missing, infinite, or too far from the mean for float32."""
    with np.errstate(over="ignore"):
        column = ((array - mean) / deviation).astype(np.float32)
    column[np.isinf(column)] = np.nan
    return column


def _record(
    spec: FieldSpec, vocabulary: Vocabulary, raw: RowValues, unknown: NDArray[np.bool_], split: Split
) -> FieldRecord:
    shares = {part: raw.share(unknown, part, split) for part in PARTS}
    return FieldRecord(kind=spec.kind, side=spec.side, size=vocabulary.size, unknown_share=shares)
