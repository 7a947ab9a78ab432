from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llm4msr.knowledge.states import UNKNOWN, States, as_of, compose

DAY = 86_400 * 1_000_000
Moment = tuple[int, int]
"""(user, time)"""
Event = tuple[int, int, int]
"""(user, time, item)"""


def ints(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def times(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def joined(states: list[Moment], rows: list[Moment]) -> list[int]:
    """`as_of` on literal moments."""
    index = as_of(
        ints([u for u, _ in states]),
        times([t for _, t in states]),
        ints([u for u, _ in rows]),
        times([t for _, t in rows]),
    )
    assert index.dtype == np.int32
    return [int(i) for i in index]


def composed(events: list[Event], vectors: NDArray[np.float32], half_life_days: float, block: int = 1000) -> States:
    """`compose` on literal events, sorted as it wants them."""
    events = sorted(events)
    user, time, item = ([event[i] for event in events] for i in range(3))
    return compose(ints(user), times(time), ints(item), vectors, half_life_days, block=block)


def plain_mean(
    events: list[Event], user: int, now: int, vectors: NDArray[np.float32], half_life_days: float
) -> NDArray[np.float64]:
    """The formula of the docstring, over the user's events up to and with `now`."""
    chosen = [(t, item) for u, t, item in events if u == user and t <= now]
    weights = np.array([2.0 ** (-(now - t) / (half_life_days * DAY)) for t, _ in chosen])
    items = vectors[[item for _, item in chosen]].astype(np.float64)
    return np.asarray((weights[:, None] * items).sum(0) / weights.sum())


STATES = [(0, 10), (0, 20), (2, 10), (2, 15)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((0, 5), UNKNOWN),
        ((0, 10), UNKNOWN),
        ((0, 11), 1),
        ((0, 20), 1),
        ((0, 21), 2),
        ((0, 999), 2),
        ((1, 999), UNKNOWN),
        ((2, 10), UNKNOWN),
        ((2, 12), 3),
        ((2, 15), 3),
        ((2, 16), 4),
        ((3, 16), UNKNOWN),
    ],
)
def test_a_row_sees_the_latest_state_of_its_user_strictly_before_it(row: Moment, expected: int) -> None:
    assert joined(STATES, [row]) == [expected]


def test_of_states_at_one_time_the_last_is_seen() -> None:
    assert joined([(0, 10), (0, 10), (0, 10)], [(0, 10), (0, 11)]) == [UNKNOWN, 3]


def test_without_states_every_row_sees_the_unknown_one() -> None:
    assert joined([], [(0, 1), (1, 2)]) == [UNKNOWN, UNKNOWN]
    assert joined(STATES, []) == []


def test_times_of_any_size_are_told_apart() -> None:
    now = 1_700_000_000_000_000
    assert joined([(0, -now), (0, now)], [(0, -now + 1), (0, now), (0, now + 1)]) == [1, 1, 2]


MOMENTS = st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 9)), max_size=25)


@given(states=MOMENTS, rows=MOMENTS)
def test_the_join_is_the_brute_force_one(states: list[Moment], rows: list[Moment]) -> None:
    ordered = sorted(states)
    expected = [
        max((i + 1 for i, (u, t) in enumerate(ordered) if u == user and t < time), default=0) for user, time in rows
    ]
    assert joined(ordered, rows) == expected


def test_the_table_begins_with_the_unknown_state() -> None:
    states = States(ints([0]), times([5]), np.array([[1.5, 2.5]], dtype=np.float32))
    table = states.seen_by(ints([0, 0, 1]), times([5, 6, 6]))
    assert table.vectors.tolist() == [[0, 0], [1.5, 2.5]]
    assert table.index.tolist() == [0, 1, 0]


AXES = np.eye(3, dtype=np.float32)


def test_a_state_is_the_mean_of_the_items_so_far() -> None:
    states = composed([(0, 1, 0), (0, 2, 1), (1, 1, 2)], AXES, half_life_days=1e9)
    assert (states.user.tolist(), states.time.tolist()) == ([0, 0, 1], [1, 2, 1])
    np.testing.assert_allclose(states.vectors, np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]]), atol=1e-6)


def test_an_event_weighs_half_after_its_half_life() -> None:
    states = composed([(0, 0, 0), (0, 2 * DAY, 1), (0, 4 * DAY, 2)], AXES, half_life_days=2)
    expected = np.array([[1, 0, 0], [1 / 3, 2 / 3, 0], [1 / 7, 2 / 7, 4 / 7]])
    np.testing.assert_allclose(states.vectors, expected, atol=1e-6)


def test_events_of_one_moment_make_one_state() -> None:
    states = composed([(0, 7, 0), (0, 7, 1), (0, 7, 1)], AXES, half_life_days=1)
    assert states.time.tolist() == [7]
    np.testing.assert_allclose(states.vectors, np.array([[1 / 3, 2 / 3, 0]]), atol=1e-6)


def test_a_long_silence_leaves_the_last_event_alone() -> None:
    states = composed([(0, 0, 0), (0, 10_000 * DAY, 1)], AXES, half_life_days=0.01)
    np.testing.assert_allclose(states.vectors[1], [0, 1, 0], atol=1e-6)


def test_no_events_make_no_states() -> None:
    states = composed([], AXES, half_life_days=1)
    assert states.vectors.shape == (0, 3)
    assert states.seen_by(ints([0, 1]), times([1, 2])).index.tolist() == [0, 0]


HISTORIES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 12).map(lambda hours: hours * DAY // 24), st.integers(0, 6)),
    max_size=40,
)
HALF_LIVES = st.sampled_from([0.02, 0.3, 5.0, 365.0])
VECTORS = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)


@settings(deadline=None)
@given(events=HISTORIES, half_life=HALF_LIVES)
def test_states_are_the_recency_weighted_means_by_brute_force(events: list[Event], half_life: float) -> None:
    states = composed(events, VECTORS, half_life)
    moments = sorted({(user, time) for user, time, _ in events})
    assert list(zip(states.user.tolist(), states.time.tolist(), strict=True)) == moments
    expected = [plain_mean(events, user, time, VECTORS, half_life) for user, time in moments]
    np.testing.assert_allclose(states.vectors, np.reshape(expected, (-1, 4)), atol=1e-5)


@settings(deadline=None)
@given(events=HISTORIES, block=st.sampled_from([1, 2, 3, 5, 8]))
def test_the_size_of_blocks_changes_nothing(events: list[Event], block: int) -> None:
    whole, parts = composed(events, VECTORS, 1.0), composed(events, VECTORS, 1.0, block=block)
    assert np.array_equal(whole.user, parts.user)
    assert np.array_equal(whole.time, parts.time)
    assert np.array_equal(whole.vectors, parts.vectors)


@settings(deadline=None)
@given(events=HISTORIES)
def test_what_a_row_sees_is_made_of_earlier_events_alone(events: list[Event]) -> None:
    events = sorted(events)
    table = composed(events, VECTORS, 1.0).seen_by(ints([u for u, _, _ in events]), times([t for _, t, _ in events]))
    for (user, time, _), index in zip(events, table.index, strict=True):
        earlier = [t for u, t, _ in events if u == user and t < time]
        assert (index == UNKNOWN) == (not earlier)
        if earlier:
            before = [event for event in events if event[1] < time]
            expected = plain_mean(before, user, max(earlier), VECTORS, 1.0)
            np.testing.assert_allclose(table.vectors[index], expected, atol=1e-5)
