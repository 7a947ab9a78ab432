"""Raw values: as text, as ids, and in order."""

from __future__ import annotations

import numpy as np
import polars as pl

_DIGITS = 16
"""Of the largest number whose place among texts is told by a 64-bit key, which has two digits more."""


def fits_int64(dtype: pl.DataType) -> bool:
    """Whether a column is of whole numbers that are all 64-bit ones with a sign."""
    return dtype.is_integer() and dtype not in (pl.UInt64, pl.Int128, pl.UInt128)


def as_text(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A raw value as text: 12.0 is written "12", so that a column read as floats keeps its values; NaN is missing."""
    if not dtype.is_float():
        return value.cast(pl.String)
    whole = value.cast(pl.Int64, strict=False)
    return pl.when(whole == value).then(whole.cast(pl.String)).otherwise(value.fill_nan(None).cast(pl.String))


def as_id(column: str, dtype: pl.DataType, *, whole: bool = False) -> pl.Expr:
    """The id of a user or an item as text, or as the `whole` number that it is; an empty one is missing."""
    if whole:
        return pl.col(column).cast(pl.Int64)
    text = as_text(pl.col(column), dtype)
    return pl.when(text != "").then(text)


def in_text_order(ids: pl.Series) -> pl.Series:
    """The ids, none missing, in order of their texts: "10" comes before "9", whatever type the ids were read as.

    Whole numbers are put in that order by a number each, several times as fast as by texts.

    >>> in_text_order(pl.Series([9, 101, 10, 1])).to_list()
    [1, 10, 101, 9]
    """
    if not fits_int64(ids.dtype) or not ids.is_between(0, 10**_DIGITS, closed="left").all():
        return ids.gather(ids.cast(pl.String).arg_sort())
    values = ids.to_numpy()
    tens = 10 ** np.arange(1, _DIGITS + 2, dtype=np.int64)
    shorter = np.searchsorted(tens, values, side="right")  # digits but one
    keys = values * tens[_DIGITS - shorter] + shorter  # digits lined up on the left; of "1" and "10" the shorter first
    return ids.gather(pl.Series(keys).arg_sort())
