"""Where values stand, by an array or by a join: both give what a dictionary gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4msr.data.positions import Positions

_BOUNDS: dict[type[pl.DataType], tuple[int, int]] = {
    pl.Int8: (-(2**7), 2**7 - 1),
    pl.UInt8: (0, 2**8 - 1),
    pl.Int64: (-(2**63), 2**63 - 1),
    pl.UInt64: (0, 2**64 - 1),
}


def _by_a_dictionary(values: Sequence[object], asked: Sequence[object]) -> list[int]:
    first: dict[object, int] = {}
    for place, value in enumerate(values):
        first.setdefault(value, place)
    return [first.get(value, -1) for value in asked]


@given(st.data(), st.sampled_from(sorted(_BOUNDS, key=str)))
def test_positions_of_whole_numbers_are_those_of_a_dictionary(data: st.DataObject, dtype: type[pl.DataType]) -> None:
    low, high = _BOUNDS[dtype]
    some = st.lists(st.none() | st.integers(max(low, -9), 9) | st.integers(low, high), max_size=12)
    values, asked = data.draw(some), data.draw(some)
    found = Positions(pl.Series(values, dtype=dtype)).of(pl.Series(asked, dtype=dtype))
    assert found.dtype == np.int32
    assert found.tolist() == _by_a_dictionary(values, asked)


_TEXTS = st.lists(st.none() | st.text("ab", max_size=2), max_size=12)


@given(_TEXTS, _TEXTS)
def test_positions_of_texts_are_those_of_a_dictionary(values: list[str | None], asked: list[str | None]) -> None:
    found = Positions(pl.Series(values, dtype=pl.String)).of(pl.Series(asked, dtype=pl.String))
    assert found.dtype == np.int32
    assert found.tolist() == _by_a_dictionary(values, asked)


@pytest.mark.parametrize("spread", [1, 100], ids=["by an array", "by a join"])
def test_ids_of_any_size_are_found(spread: int) -> None:
    ids = np.random.default_rng(0).permutation(1000) * spread + 2**40
    found = Positions(pl.Series(ids)).of(pl.Series(ids[::-1]))
    np.testing.assert_array_equal(found, np.arange(1000)[::-1])
