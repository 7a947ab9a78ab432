"""The order of an epoch's rows, whole or in windows for data larger than memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4msr.training import order
from llm4msr.training.order import Drawing, Groups, shuffled


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "BLOCK", 8)


def groups(rows: int, number: int, most: int) -> Groups:
    return Groups(np.random.default_rng(5).integers(0, number, rows), most)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 300),
    size=st.integers(1, 70),
    window=st.none() | st.integers(1, 400),
    grouped=st.none() | st.tuples(st.integers(1, 50), st.integers(1, 9)),
)
def test_each_row_is_visited_once_in_batches_of_one_size(
    rows: int, size: int, window: int | None, grouped: tuple[int, int] | None
) -> None:
    batches = list(shuffled(rows, Drawing(size, window=window), 0, None if grouped is None else groups(rows, *grouped)))
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    assert {len(batch) for batch in batches[:-1]} <= {size}
    assert 0 < len(batches[-1]) <= size


@pytest.mark.parametrize("window", [None, 32])
def test_the_order_depends_on_seed_and_epoch_alone(window: int | None) -> None:
    def of(seed: int, epoch: int) -> list[int]:
        return np.concatenate(list(shuffled(200, Drawing(16, seed, window), epoch))).tolist()  # type: ignore[no-any-return]

    assert of(1, 2) == of(1, 2)
    assert of(1, 2) != of(1, 3)
    assert of(1, 2) != of(2, 2)


def test_rows_of_a_group_come_in_pieces_in_order_of_time_and_the_pieces_are_shuffled() -> None:
    by = groups(2000, 40, most=5)
    visited = np.concatenate(list(shuffled(2000, Drawing(128), 0, by)))
    group = by.of_rows[visited]
    cuts = np.flatnonzero((group[1:] != group[:-1]) | (visited[1:] < visited[:-1])) + 1
    pieces = np.split(visited, cuts)
    sizes = np.bincount(by.of_rows)
    assert len(pieces) <= (-(-sizes // 5)).sum()  # neighbours of one group can look like one piece
    assert np.mean([len(p) for p in pieces]) > 4
    assert visited.tolist() != np.concatenate(list(shuffled(2000, Drawing(128), 1, by))).tolist()


def test_every_order_of_pieces_is_as_likely() -> None:
    by = Groups(np.array([0, 1, 0, 2]), most=2)
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(3000):
        found = tuple(np.concatenate(list(shuffled(4, Drawing(4, seed), 0, by))).tolist())
        counts[found] = counts.get(found, 0) + 1
    assert set(counts) == {
        tuple(n for piece in order for n in piece) for order in itertools.permutations([(0, 2), (1,), (3,)])
    }
    assert all(400 < count < 600 for count in counts.values())


def test_a_window_holds_a_few_blocks_at_a_time_and_is_a_shuffle_within() -> None:
    visited = np.concatenate(list(shuffled(8 * 40, Drawing(16, window=8 * 4), 0)))
    for start in range(0, len(visited), 32):
        window = visited[start : start + 32]
        assert len(set(window // 8)) == 4
        assert window.tolist() != sorted(window.tolist())
    windows = [frozenset(visited[i : i + 32] // 8) for i in range(0, len(visited), 32)]
    assert len(frozenset.union(*windows)) == 40
    assert any(max(blocks) - min(blocks) > 3 for blocks in windows)
