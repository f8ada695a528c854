"""Clustering of pairs against the NumPy reference, partition, numbering and counts."""

import functools

import hypothesis
import jax
import numpy as np

from fnet_jax import kernels
from fnet_jax.kernels import reference
from tests.kernels import cases

R = 10


@functools.partial(jax.jit, static_argnames="capacity")
def cluster_pairs(boxes, scores, threshold, capacity, mask=None):
    return kernels.cluster_pairs(boxes, scores, threshold, capacity, mask=mask)


def check(result, expected):
    """Used slots as expected, unused ones empty, and the counts."""
    boxes, pair_cluster, incidence, overflow = expected
    count, capacity = len(boxes), len(result.mask)
    assert (int(result.count), int(result.overflow)) == (count, overflow)
    np.testing.assert_array_equal(result.mask, np.arange(capacity) < count)
    np.testing.assert_array_equal(result.pair_cluster, pair_cluster)
    np.testing.assert_array_equal(result.boxes[:count], boxes)
    np.testing.assert_array_equal(result.boxes[count:], 0)
    np.testing.assert_array_equal(result.incidence[:count], incidence)
    assert not np.any(result.incidence[count:])


@cases.settings
@hypothesis.given(cases.boxes(R), cases.scores(R), cases.masks(R), cases.thresholds)
def test_cluster_pairs(boxes, scores, mask, threshold):
    expected = reference.cluster_pairs(boxes, scores, threshold, R * R, mask=mask)
    check(cluster_pairs(boxes, scores, threshold, R * R, mask), expected)


@cases.settings
@hypothesis.given(cases.boxes(R), cases.scores(R), cases.masks(R), cases.thresholds)
def test_overflow_is_counted(boxes, scores, mask, threshold):
    expected = reference.cluster_pairs(boxes, scores, threshold, 4, mask=mask)
    check(cluster_pairs(boxes, scores, threshold, 4, mask), expected)


@hypothesis.settings(cases.settings, max_examples=2)
@hypothesis.given(cases.seeds)
def test_survivors_that_move_to_smaller_arrays(seed):
    """Enough pairs for three array sizes, with capacity to spare and with too little."""
    rng = np.random.default_rng(seed)
    number = 46
    boxes = cases.crowd(rng, number, places=30)
    scores = cases.eighths(rng.integers(1, 9, number))
    mask = rng.uniform(size=number) < 0.9
    for capacity in (512, 16):
        expected = reference.cluster_pairs(boxes, scores, 0.5, capacity, mask=mask)
        check(cluster_pairs(boxes, scores, 0.5, capacity, mask), expected)
        assert (expected[-1] > 0) == (capacity == 16)


def test_absorption_is_at_or_above_the_threshold():
    # Union boxes: the two boxes and, for the mixed pair, the larger box again. IoU exactly 1/2.
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 19]], np.float32)
    scores = np.array([0.5, 0.75], np.float32)
    at = cluster_pairs(boxes, scores, 0.5, 4)
    np.testing.assert_array_equal(at.pair_cluster, [[0, 0], [0, 0]])
    np.testing.assert_array_equal(at.boxes[0], boxes[1])
    above = cluster_pairs(boxes, scores, 0.501, 4)
    np.testing.assert_array_equal(above.pair_cluster, [[0, 1], [1, 1]])
    np.testing.assert_array_equal(above.incidence[:2], [[True, False], [True, True]])


def test_overflow_counts_ordered_pairs():
    # Three far-apart objects: six different union boxes, of which one finds a slot.
    boxes = np.array([[0, 0, 9, 9], [500, 0, 509, 9], [0, 500, 9, 509]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    result = cluster_pairs(boxes, scores, 0.9, 1)
    assert (int(result.count), int(result.overflow)) == (1, 8)
    np.testing.assert_array_equal(result.pair_cluster, [[0, -1, -1], [-1, -1, -1], [-1, -1, -1]])


def test_nothing_valid():
    result = cluster_pairs(
        np.ones((R, 4), np.float32), np.ones(R, np.float32), 0.5, 4, np.zeros(R, bool)
    )
    check(result, (np.zeros((0, 4)), np.full((R, R), -1), np.zeros((0, R), bool), 0))


def test_padding_and_vmap_change_nothing():
    rng = np.random.default_rng(5)
    number = 24
    boxes = np.stack([cases.crowd(rng, number) for _ in range(3)])
    scores = cases.eighths(rng.integers(1, 9, (3, number)))
    valid = np.array([24, 13, 1])
    mask = np.arange(number) < valid[:, None]
    batch = jax.jit(jax.vmap(lambda *x: kernels.cluster_pairs(*x[:2], 0.5, 128, mask=x[2])))(
        boxes, scores, mask
    )
    for i, size in enumerate(valid):
        one = jax.tree.map(lambda x: np.asarray(x)[i], batch)  # noqa: B023
        bare = reference.cluster_pairs(boxes[i, :size], scores[i, :size], 0.5, 128)
        assert (int(one.count), int(one.overflow)) == (len(bare[0]), bare[-1])
        np.testing.assert_array_equal(one.pair_cluster[:size, :size], bare[1])
        np.testing.assert_array_equal(one.pair_cluster[size:], -1)
        np.testing.assert_array_equal(one.pair_cluster[:, size:], -1)
        np.testing.assert_array_equal(one.boxes[: len(bare[0])], bare[0])
        np.testing.assert_array_equal(one.incidence[: len(bare[0]), :size], bare[2])
        assert not np.any(one.incidence[:, size:])
