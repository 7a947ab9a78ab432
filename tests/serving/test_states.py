"""Sums that events are added to, one at a time and in any order, are the pipeline's composed states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4msr.knowledge.states import Composed, compose
from llm4msr.serving.states import Events, StateRule, Sums, sums_of_user, sums_of_users

VECTORS = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
DAY = 86_400_000_000


def _rule(half_life_events: float | None) -> StateRule:
    return StateRule(
        sources=("own", "others"),
        scenarios=3,
        width=4,
        half_life_days=5.0,
        half_life_events=half_life_events,
        behaviour_weights=(1.0, 0.5),
        counts=((0.5, 0.7), (0.6, 0.9)),
    )


def _events(rows: list[tuple[int, int, int, int]], user: int = 0) -> Events:
    table = np.array(sorted(rows), dtype=np.int64).reshape(-1, 4)
    whose = np.full(len(table), user, np.int32)
    columns = (table[:, 1].astype(np.int32), table[:, 2].astype(np.int16), table[:, 3].astype(np.int16))
    return Events(whose, table[:, 0] * DAY // 4, *columns)


def _offline(events: Events, scenario: int, source: Composed, rule: StateRule) -> np.ndarray:
    chosen = events.scenario == scenario if source == "own" else events.scenario != scenario
    part = events[chosen]
    weight = np.asarray(rule.behaviour_weights)[part.behaviour]
    states = compose(
        part.user, part.time, part.item, VECTORS, rule.half_life_days,
        half_life_events=rule.half_life_events, weight=weight,
    )  # fmt: skip
    out = np.zeros(6, np.float32)
    out[-1] = not len(part)
    if len(part):
        mean, deviation = rule.counts[0 if source == "own" else 1]
        out[:4], out[4] = states.vectors[-1], (np.log1p(len(part)) - mean) / deviation
    return out


def _assert_equal_to_composed(sums: Sums, events: Events, rule: StateRule) -> None:
    sources: tuple[Composed, ...] = ("own", "others")
    for scenario in range(3):
        for source in sources:
            found = np.empty(6, np.float32)
            sums.state(scenario, source, rule, found)
            np.testing.assert_allclose(found, _offline(events, scenario, source, rule), atol=2e-6)


ROWS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 5), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=12
)


@pytest.mark.parametrize("user", [0, -1], ids=["known", "stranger"])
@pytest.mark.parametrize("half_life_events", [None, 2.0])
@given(rows=ROWS)
@settings(max_examples=60, deadline=None)
def test_sums_of_a_whole_history(
    half_life_events: float | None, user: int, rows: list[tuple[int, int, int, int]]
) -> None:
    rule, events = _rule(half_life_events), _events(rows, user)
    _assert_equal_to_composed(sums_of_user(events, VECTORS, rule), events, rule)


@pytest.mark.parametrize("half_life_events", [None, 2.0])
@given(rows=ROWS, order=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_events_that_come_in_any_order(
    half_life_events: float | None, rows: list[tuple[int, int, int, int]], order: object
) -> None:
    rule = _rule(half_life_events)
    shuffled = list(rows)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    sums = Sums.empty(rule)
    for place, (time, item, scenario, behaviour) in enumerate(shuffled):
        moment = time * DAY // 4
        if sums.can_add(scenario, moment, rule):
            sums.add(scenario, moment, VECTORS[item], rule.behaviour_weights[behaviour], rule)
        else:
            sums = sums_of_user(_events(shuffled[: place + 1]), VECTORS, rule)
    _assert_equal_to_composed(Sums.from_bytes(sums.to_bytes(), rule), _events(rows), rule)


def test_sums_of_many_users_in_blocks() -> None:
    random = np.random.default_rng(3)
    people = [
        _events([tuple(random.integers(0, (40, 6, 3, 2)).tolist()) for _ in range(random.integers(1, 9))], user)
        for user in range(30)
    ]
    everyone = Events(*(np.concatenate(columns) for columns in zip(*(vars(p).values() for p in people), strict=True)))
    rule = _rule(None)
    keys, sums = sums_of_users(everyone, VECTORS, rule, block=7)
    assert (np.diff(keys) > 0).all()
    for user, events in enumerate(people):
        there = keys // rule.streams == user
        alone = sums_of_user(events, VECTORS, rule)
        np.testing.assert_allclose(sums.total[there], alone.total[keys[there] % rule.streams], atol=1e-12)
