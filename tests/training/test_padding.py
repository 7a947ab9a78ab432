"""Shapes fit nearly every batch, are not much larger, and hold a batch's rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llm4msr.training.padding import Numbers, Shapes, room_of


def drawn(count: int, together: int, chances: list[float], seed: int = 0) -> NDArray[np.int64]:
    """The scenarios' numbers of rows in `count` batches of 4,096 rows."""
    random = np.random.default_rng(seed)
    return random.multinomial(4096 // together, chances, size=count).astype(np.int64) * together


@pytest.mark.parametrize("together", [1, 16])
def test_there_is_room_for_nearly_every_batch_and_not_for_much_more(together: int) -> None:
    chances = [0.7, 0.25, 0.05, 0.0]
    room = room_of(drawn(64, together, chances))
    assert (drawn(20_000, together, chances, seed=1) <= room).all(1).mean() > 0.999
    assert room.sum() < 4096 * (1.1 if together == 1 else 1.5)
    assert room[3] == 0


@pytest.mark.parametrize("rare", [0.005, 0.001, 0.0002])
def test_batches_without_a_rare_scenario_have_a_shape_of_their_own(rare: float) -> None:
    chances = [0.7, 0.3 - 2 * rare, rare, rare]
    shapes = Shapes(drawn(64, 16, chances))
    found = [(counts, shapes.of(counts)) for counts in drawn(2_000, 16, chances, seed=1)]
    fitting = [(counts, shape) for counts, shape in found if shape is not None]
    assert len(fitting) > 0.95 * len(found)
    assert all((shape.room[counts == 0] == 0).all() for counts, shape in fitting)
    assert len({id(shape) for _, shape in fitting}) == len(shapes) <= 4


def test_there_are_only_so_many_shapes_and_the_most_frequent_ones() -> None:
    chances = [0.8, *[0.02] * 10]
    sample = drawn(64, 64, chances)
    shapes = Shapes(sample)
    assert len(shapes) == 16
    sets, often = np.unique(sample > 0, axis=0, return_counts=True)
    most = sets[often == often.max()][0]
    assert shapes.of(np.where(most, 1, 0)) is not None


def test_a_padded_batch_holds_its_rows_and_repeats_them_in_the_room_that_is_left() -> None:
    shapes = Shapes(np.array([[5, 0, 3], [6, 0, 2]]))
    shape = shapes.of(np.array([6, 0, 2]))
    assert shape is not None
    rows, offsets = np.arange(100, 108), np.array([0, 6, 6, 8])
    numbers = Numbers.of(shape, rows, offsets, pinned=False)
    sent: Any = numbers.sent.numpy()
    assert numbers.rows == 8
    assert sent[-3:].tolist() == [6, 0, 2]
    assert len(sent) == len(shape) + 3
    real = shape.real(np.diff(offsets))
    assert sent[:-3][real].tolist() == rows.tolist()
    assert set(sent[:-3][~real].tolist()) == {100, 106}
