from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llm4msr.knowledge.vectors import CLIP, FARTHEST, Reduction

Vectors = NDArray[np.float32]


def cloud(count: int, width: int = 8, seed: int = 0) -> Vectors:
    """Hidden states as they are: correlated, off centre, one dimension far larger than the others."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((width, width))
    scale = np.where(np.arange(width) == 2, 100.0, 1.0)
    return ((random.standard_normal((count, width)) @ mixing + 3.0) * scale).astype(np.float32)


def unshortened(reduction: Reduction, vectors: Vectors) -> Vectors:
    """What `apply` gives before it shortens what is far away."""
    standard = np.clip((vectors - reduction.mean) / reduction.deviation, -CLIP, CLIP)
    return np.asarray(standard @ reduction.components + reduction.offset, np.float32)


def test_standardised_dimensions_have_the_training_mean_0_and_deviation_1() -> None:
    training = np.array([[1, 10], [3, 30], [1, 30], [3, 10]], dtype=np.float32)
    reduction = Reduction.fit(training, 0)
    assert (reduction.mean.tolist(), reduction.deviation.tolist()) == ([2, 20], [1, 10])
    assert reduction.apply(training).tolist() == [[-1, -1], [1, 1], [-1, 1], [1, -1]]


def test_values_are_clipped_at_four_deviations() -> None:
    reduction = Reduction.fit(np.array([[-1], [1], [-1], [1]], dtype=np.float32), 0)
    assert reduction.apply(np.array([[3], [5], [-500]], dtype=np.float32)).tolist() == [[3], [CLIP], [-CLIP]]


def test_extreme_training_vectors_are_clipped_before_the_components_are_fitted() -> None:
    training = cloud(2000)
    training[:20] *= 30
    reduction = Reduction.fit(training, 3)
    np.testing.assert_allclose(np.cov(unshortened(reduction, training).T), np.eye(3), atol=1e-2)


@pytest.mark.parametrize("dimensions", [1, 3, 8])
def test_reduced_training_vectors_are_whitened(dimensions: int) -> None:
    training = cloud(2000)
    reduced = Reduction.fit(training, dimensions).apply(training)
    assert reduced.shape == (2000, dimensions)
    np.testing.assert_allclose(reduced.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(reduced.T).reshape(dimensions, dimensions), np.eye(dimensions), atol=1e-2)


def test_what_is_reduced_beside_a_vector_does_not_change_it() -> None:
    reduction = Reduction.fit(cloud(100), 4)
    others = cloud(50, seed=1)
    np.testing.assert_allclose(reduction.apply(others)[7:8], reduction.apply(others[7:8]), atol=1e-6)


def test_the_size_of_blocks_changes_nothing() -> None:
    reduction, others = Reduction.fit(cloud(100), 4), cloud(50, seed=1)
    np.testing.assert_allclose(reduction.apply(others, block=7), reduction.apply(others), atol=1e-6)


def test_half_precision_vectors_are_reduced_as_the_floats_they_are() -> None:
    half = cloud(200).astype(np.float16)
    reduction = Reduction.fit(half, 4)
    assert reduction.apply(half).dtype == np.float32
    np.testing.assert_array_equal(reduction.apply(half), reduction.apply(half.astype(np.float32)))


def test_the_input_is_left_as_it_was() -> None:
    training = cloud(20)
    before = training.copy()
    Reduction.fit(training, 2).apply(training)
    assert np.array_equal(training, before)


@pytest.mark.parametrize(("count", "width"), [(3, 2), (5, 4), (9, 8), (50, 8)])
def test_fewer_dimensions_come_out_of_few_vectors(count: int, width: int) -> None:
    assert Reduction.fit(cloud(count), 64).apply(cloud(count)).shape == (count, width)


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_vectors_are_standardised_only(count: int) -> None:
    reduced = Reduction.fit(cloud(count), 64).apply(cloud(count))
    assert reduced.shape == (count, 8)
    assert np.isfinite(reduced).all()


def test_a_constant_dimension_counts_for_nothing() -> None:
    training = cloud(100)
    training[:, 5] = 7.0
    reduction = Reduction.fit(training, 8)
    moved = training.copy()
    moved[:, 5] = 9.0
    assert np.isfinite(reduction.apply(training)).all()
    np.testing.assert_allclose(reduction.apply(moved), reduction.apply(training), atol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning:sklearn")
def test_vectors_that_are_all_the_same_become_zero() -> None:
    same = np.full((10, 4), 2.5, dtype=np.float32)
    assert not Reduction.fit(same, 3).apply(same).any()


def test_a_direction_that_training_vectors_lack_is_not_blown_up() -> None:
    three_points = np.repeat(cloud(3), 20, axis=0)
    reduction = Reduction.fit(three_points, 8)
    np.testing.assert_allclose(reduction.apply(three_points).std(0), [1, 1, 0, 0, 0, 0, 0, 0], atol=0.02)
    assert np.abs(reduction.apply(cloud(200, seed=1))).max() < 20


def test_a_reduction_is_its_four_arrays() -> None:
    reduction = Reduction.fit(cloud(100), 3)
    again = Reduction(**{name: array.copy() for name, array in vars(reduction).items()})
    assert {name: array.shape for name, array in vars(reduction).items()} == {
        "mean": (8,),
        "deviation": (8,),
        "components": (8, 3),
        "offset": (3,),
    }
    np.testing.assert_array_equal(again.apply(cloud(9)), reduction.apply(cloud(9)))


def test_what_is_unlike_all_training_vectors_keeps_its_direction_and_is_no_farther_than_the_farthest() -> None:
    training = cloud(60, width=40)
    reduction = Reduction.fit(training, 32)
    unlike, most = -training + 40, FARTHEST * 32**0.5
    near, far = reduction.apply(training), reduction.apply(unlike)
    np.testing.assert_allclose(near, unshortened(reduction, training), atol=1e-4)
    assert np.linalg.norm(near, axis=1).max() < most
    free = unshortened(reduction, unlike)
    lengths = np.linalg.norm(free, axis=1, keepdims=True)
    assert lengths.max() > 2 * most
    np.testing.assert_allclose(far, free * np.minimum(1, most / lengths), rtol=1e-4, atol=1e-4)
