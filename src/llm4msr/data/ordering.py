"""The sort orders of rows and of a history, and a fast sort for rows that are mostly in order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

ROW_ORDER = ("time", "user", "item", "scenario", "row")
EVENT_ORDER = ("user", "time", "scenario", "item", "behaviour")


def in_order(rows: pl.DataFrame, order: Sequence[str], known: int = 1) -> pl.DataFrame:
    """`rows.sort(order)` in two steps: sort by the first column, then sort tied rows by all columns.

    Rows are tied if they are equal in the first `known` columns. This is fast on a log, which comes in order of time
    and has few rows with the same time. Rows that are equal in the first column must already be in order of the other
    `known` columns.
    """
    turn = rows.select(pl.arg_sort_by(order[0], maintain_order=True)).to_series()
    leading = rows.select(order[:known])[turn]
    again = pl.all_horizontal(pl.all() == pl.all().shift()).fill_null(value=False)
    tied = leading.select(again | again.shift(-1, fill_value=False)).to_series()
    places = np.flatnonzero(tied.to_numpy())
    if len(places):
        among = rows[turn[places]].select(pl.arg_sort_by(order)).to_series()
        turn[places] = turn[places][among]
    return rows[turn]
