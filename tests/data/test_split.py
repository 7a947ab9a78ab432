from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llm4msr.data.split import PARTS, Split, chronological_split
from llm4msr.errors import InputError

TIMES = st.lists(st.integers(-50, 50), min_size=1, max_size=60).map(lambda t: np.sort(np.array(t, dtype=np.int64)))
RATIOS = st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20))


def split(*times: int, ratios: tuple[float, float, float] = (8, 1, 1)) -> Split:
    return chronological_split(np.array(times, dtype=np.int64), ratios)


def test_ten_rows_are_cut_8_1_1() -> None:
    assert split(*range(10, 20)) == Split(rows=10, valid=8, test=9, valid_time=18, test_time=19)


def test_the_parts_are_ranges_of_rows() -> None:
    cut = split(*range(10), ratios=(5, 3, 2))
    assert [cut.range(part) for part in PARTS] == [(0, 5), (5, 8), (8, 10)]


def test_rows_of_the_time_of_the_cut_go_to_the_later_part() -> None:
    cut = split(1, 2, 3, 4, 5, 6, 8, 8, 8, 9)
    assert cut == Split(rows=10, valid=6, test=9, valid_time=8, test_time=9)


def test_one_time_at_both_cuts_leaves_validation_empty() -> None:
    cut = split(1, 2, 3, 4, 5, 6, 7, 8, 9, 9)
    assert [cut.range(part) for part in PARTS] == [(0, 8), (8, 8), (8, 10)]


def test_a_share_of_zero_gives_an_empty_part() -> None:
    assert split(1, 2, 3, 4, ratios=(1, 0, 1)) == Split(rows=4, valid=2, test=2, valid_time=3, test_time=3)
    assert split(1, 2, 3, 4, ratios=(1, 0, 0)) == Split(rows=4, valid=4, test=4, valid_time=5, test_time=5)


def test_one_row_trains() -> None:
    assert split(7) == Split(rows=1, valid=1, test=1, valid_time=8, test_time=8)


def test_equal_times_cannot_be_split() -> None:
    with pytest.raises(InputError, match="leaves no training row: 3 rows"):
        split(5, 5, 5, ratios=(1, 1, 1))


@pytest.mark.parametrize("ratios", [(0, 1, 1), (-1, 1, 1), (8, -1, 1), (float("nan"), 1, 1), (8, float("inf"), 1)])
def test_impossible_ratios_are_refused(ratios: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="needs a positive share for training, and none below zero or infinite"):
        split(1, 2, 3, ratios=ratios)


def test_other_rows_are_cut_at_the_same_times() -> None:
    cut = split(*range(10))
    assert cut.over(np.array([0, 7, 7, 8, 8, 8, 9])) == Split(rows=7, valid=3, test=6, valid_time=8, test_time=9)
    assert cut.over(np.array([], dtype=np.int64)) == Split(rows=0, valid=0, test=0, valid_time=8, test_time=9)
    assert cut.over(np.array([9, 9])) == Split(rows=2, valid=0, test=0, valid_time=8, test_time=9)


@given(TIMES, RATIOS)
def test_the_rows_themselves_are_cut_as_they_were(
    times: np.ndarray[tuple[int], np.dtype[np.int64]], ratios: tuple[int, int, int]
) -> None:
    try:
        cut = chronological_split(times, ratios)
    except InputError:
        assume(False)
    assert cut.over(times) == cut


@given(TIMES, RATIOS)
def test_the_times_of_the_cuts_say_to_which_part_a_row_belongs(
    times: np.ndarray[tuple[int], np.dtype[np.int64]], ratios: tuple[int, int, int]
) -> None:
    try:
        cut = chronological_split(times, ratios)
    except InputError:
        assume(False)
    row = np.arange(len(times))
    assert cut.rows == len(times)
    assert 0 < cut.valid <= cut.test <= cut.rows
    assert cut.valid_time <= cut.test_time
    np.testing.assert_array_equal(times < cut.valid_time, row < cut.valid)
    np.testing.assert_array_equal(times >= cut.test_time, row >= cut.test)


@given(st.integers(3, 200), RATIOS)
def test_distinct_times_keep_the_ratios_to_within_a_row(rows: int, ratios: tuple[int, int, int]) -> None:
    assume(rows * ratios[0] / sum(ratios) >= 1)
    cut = chronological_split(np.arange(rows), ratios)
    assert abs(cut.valid - rows * ratios[0] / sum(ratios)) <= 0.5 + 1e-9
    assert abs(cut.test - rows * (ratios[0] + ratios[1]) / sum(ratios)) <= 0.5 + 1e-9


@given(TIMES, RATIOS)
def test_ties_only_ever_make_training_shorter(
    times: np.ndarray[tuple[int], np.dtype[np.int64]], ratios: tuple[int, int, int]
) -> None:
    try:
        cut = chronological_split(times, ratios)
    except InputError:
        assume(False)
    distinct = chronological_split(np.arange(len(times)), ratios)
    assert cut.valid <= distinct.valid
    assert cut.test <= distinct.test
