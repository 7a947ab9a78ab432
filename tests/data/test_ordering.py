"""Rows put in order by few comparisons are in the order of a sort by all columns."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4msr.data.ordering import in_order

_ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 2)), max_size=30)


@pytest.mark.parametrize("known", [1, 2])
@given(listed=_ROWS)
def test_the_order_is_that_of_a_sort_by_all_columns(listed: list[tuple[int, int, int]], known: int) -> None:
    rows = pl.DataFrame(listed, schema={"a": pl.Int64, "b": pl.Int32, "c": pl.Int16}, orient="row")
    given_rows = rows.sort("b", "c", maintain_order=True) if known == 2 else rows
    assert in_order(given_rows, ("a", "b", "c"), known).equals(rows.sort("a", "b", "c"))
