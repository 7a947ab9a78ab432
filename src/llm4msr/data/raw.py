"""Convert raw values to text and to ids, and sort ids."""

from __future__ import annotations

import numpy as np
import polars as pl

_DIGITS = 16
"""The most digits of ids that are sorted by a 64-bit key; the key has two digits more."""


def fits_int64(dtype: pl.DataType) -> bool:
    """Whether this is an integer type whose values all fit a signed 64-bit integer."""
    return dtype.is_integer() and dtype not in (pl.UInt64, pl.Int128, pl.UInt128)


def as_text(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A raw value as text; NaN is missing. 12.0 becomes "12", so an integer that was read as a float is unchanged."""
    if not dtype.is_float():
        return value.cast(pl.String)
    whole = value.cast(pl.Int64, strict=False)
    return pl.when(whole == value).then(whole.cast(pl.String)).otherwise(value.fill_nan(None).cast(pl.String))


def as_texts(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A list of raw values, of the type `pl.List` or `pl.Array`, as a list of their texts (see `as_text`)."""
    if isinstance(dtype, pl.Array):
        value, dtype = value.arr.to_list(), pl.List(dtype.inner)
    assert isinstance(dtype, pl.List)
    inner = pl.String() if dtype.inner is None else dtype.inner
    return value.list.eval(as_text(pl.element(), inner))  # type: ignore[arg-type]


def as_id(column: str, dtype: pl.DataType, *, whole: bool = False) -> pl.Expr:
    """The id of a user or an item: text, or int64 with `whole`. An empty text is missing."""
    if whole:
        return pl.col(column).cast(pl.Int64)
    text = as_text(pl.col(column), dtype)
    return pl.when(text != "").then(text)


def in_text_order(ids: pl.Series) -> pl.Series:
    """Sort ids, none missing, in the order of their texts: "10" comes before "9", whatever the type of the ids.

    Integers from 0 with at most 16 digits are sorted by an integer key, several times as fast as by text.

    >>> in_text_order(pl.Series([9, 101, 10, 1])).to_list()
    [1, 10, 101, 9]
    """
    if not fits_int64(ids.dtype) or not ids.is_between(0, 10**_DIGITS, closed="left").all():
        return ids.gather(ids.cast(pl.String).arg_sort())
    values = ids.to_numpy()
    tens = 10 ** np.arange(1, _DIGITS + 2, dtype=np.int64)
    shorter = np.searchsorted(tens, values, side="right")  # number of digits, less one
    keys = values * tens[_DIGITS - shorter] + shorter  # digits aligned on the left; then "1" goes before "10"
    return ids.gather(pl.Series(keys).arg_sort())
