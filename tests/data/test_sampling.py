from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llm4msr.data.sampling import hash_keys, stratified_positions, uniform

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=12)


def positions(ids: list[int], sizes: list[int], count: int, seed: int = 0) -> dict[int, list[int]]:
    keys = hash_keys(np.array(ids), seed=seed)
    row, position = stratified_positions(keys, np.array(sizes), count)
    return {key: position[row == index].tolist() for index, key in enumerate(ids)}


def splitmix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_the_hash_chains_splitmix64_over_seed_and_keys() -> None:
    golden = 0x9E3779B97F4A7C15
    assert splitmix(golden) == 0xE220A8397B1DCDAF  # the published first number of seed 0
    seeded = splitmix(3 + golden)
    expected = splitmix(splitmix(seeded ^ (2**64 - 1 + golden) % 2**64) ^ (2 + golden))
    assert hash_keys(np.array([-1]), np.array([2]), seed=3).tolist() == [expected]


def test_the_hash_of_a_row_does_not_depend_on_the_other_rows() -> None:
    together = hash_keys(np.array([5, 6, 7]), np.array([1, 2, 3]), seed=0)
    alone = hash_keys(np.array([6]), np.array([2]), seed=0)
    assert together[1] == alone[0]


def test_the_hash_depends_on_every_key_their_order_and_the_seed() -> None:
    one, two = np.array([1]), np.array([2])
    hashes = {int(h[0]) for h in (hash_keys(one, two, seed=0), hash_keys(two, one, seed=0), hash_keys(one, seed=0))} | {
        int(hash_keys(one, two, seed=1)[0])
    }
    assert len(hashes) == 4


def test_a_key_becomes_a_number_from_0_to_below_1() -> None:
    keys = np.array([0, 2**11 - 1, 2**11, 2**63, 2**64 - 1], dtype=np.uint64)
    assert uniform(keys).tolist() == [0.0, 0.0, 2.0**-53, 0.5, 1 - 2.0**-53]


def test_the_numbers_of_hashed_keys_are_spread_evenly() -> None:
    numbers = uniform(hash_keys(np.arange(20_000), seed=0))
    np.testing.assert_allclose(np.histogram(numbers, 10, (0, 1))[0] / 20_000, 0.1, atol=0.01)


def test_all_positions_are_drawn_where_there_are_fewer_than_asked() -> None:
    assert positions([1, 2, 3], [2, 0, 3], count=3) == {1: [0, 1], 2: [], 3: [0, 1, 2]}


def test_nothing_is_drawn_when_nothing_is_asked() -> None:
    assert positions([1, 2], [5, 7], count=0) == {1: [], 2: []}


def test_every_position_is_drawn_about_equally_often() -> None:
    keys = hash_keys(np.arange(20_000), seed=0)
    _, position = stratified_positions(keys, np.full(20_000, 10), 3)
    share = np.bincount(position, minlength=10) / 20_000
    np.testing.assert_allclose(share, np.repeat([1 / 3, 1 / 3, 1 / 4], [3, 3, 4]), atol=0.015)


@given(SIZES, st.integers(0, 12), st.integers(0, 2**32))
def test_positions_are_in_range_distinct_and_as_many_as_asked(sizes: list[int], count: int, seed: int) -> None:
    ids = list(range(len(sizes)))
    for size, drawn in zip(sizes, positions(ids, sizes, count, seed).values(), strict=True):
        assert len(drawn) == min(size, count)
        assert drawn == sorted(set(drawn))
        assert all(0 <= p < size for p in drawn)


@given(SIZES, st.integers(0, 12), st.data())
def test_the_positions_of_a_row_do_not_depend_on_the_other_rows(
    sizes: list[int], count: int, data: st.DataObject
) -> None:
    ids = list(range(100, 100 + len(sizes)))
    some = data.draw(st.permutations(range(len(sizes))).map(lambda order: order[: max(1, len(order) // 2)]))
    everyone = positions(ids, sizes, count)
    kept = positions([ids[k] for k in some], [sizes[k] for k in some], count)
    assert kept == {ids[k]: everyone[ids[k]] for k in some}
