"""The order of an epoch's rows, whole or in windows for data larger than memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4msr.training import order
from llm4msr.training.order import shuffled


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "BLOCK", 8)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 300), size=st.integers(1, 70), window=st.none() | st.integers(1, 400))
def test_each_row_is_visited_once_in_batches_of_one_size(rows: int, size: int, window: int | None) -> None:
    batches = list(shuffled(rows, size, 0, 0, window))
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    assert {len(batch) for batch in batches[:-1]} <= {size}
    assert 0 < len(batches[-1]) <= size


@pytest.mark.parametrize("window", [None, 32])
def test_the_order_depends_on_seed_and_epoch_alone(window: int | None) -> None:
    def of(seed: int, epoch: int) -> list[int]:
        return np.concatenate(list(shuffled(200, 16, seed, epoch, window))).tolist()  # type: ignore[no-any-return]

    assert of(1, 2) == of(1, 2)
    assert of(1, 2) != of(1, 3)
    assert of(1, 2) != of(2, 2)


def test_a_window_holds_a_few_blocks_at_a_time_and_is_a_shuffle_within() -> None:
    visited = np.concatenate(list(shuffled(8 * 40, 16, 0, 0, window=8 * 4)))
    for start in range(0, len(visited), 32):
        window = visited[start : start + 32]
        assert len(set(window // 8)) == 4
        assert window.tolist() != sorted(window.tolist())
    windows = [frozenset(visited[i : i + 32] // 8) for i in range(0, len(visited), 32)]
    assert len(frozenset.union(*windows)) == 40
    assert any(max(blocks) - min(blocks) > 3 for blocks in windows)
