"""Ids in the order of their texts, by a sort of the texts themselves."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from llm4msr.data.raw import in_text_order

_ANY = st.integers(0, 200) | st.integers(-(2**63), 2**63 - 1) | st.integers(10**16 - 9, 10**16 + 9)


@given(st.lists(_ANY) | st.lists(st.integers(0, 200) | st.integers(0, 10**16 - 1)))
def test_whole_numbers_are_in_the_order_of_their_texts(numbers: list[int]) -> None:
    assert in_text_order(pl.Series(numbers, dtype=pl.Int64)).to_list() == sorted(numbers, key=str)


@given(st.lists(st.text("aB1", max_size=3)))
def test_texts_are_in_order(texts: list[str]) -> None:
    assert in_text_order(pl.Series(texts, dtype=pl.String)).to_list() == sorted(texts)
