"""The three suppressions against the NumPy reference, index for index."""

import functools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from fnet_jax import kernels
from fnet_jax.kernels import reference
from tests.kernels import cases

N = 24


@functools.partial(jax.jit, static_argnames="max_output")
def nms(boxes, scores, threshold, max_output, mask=None):
    return kernels.nms(boxes, scores, threshold, max_output, mask=mask)


@functools.partial(jax.jit, static_argnames="max_output")
def class_aware_nms(boxes, scores, classes, threshold, max_output, mask):
    return kernels.class_aware_nms(boxes, scores, classes, threshold, max_output, mask=mask)


@functools.partial(jax.jit, static_argnames="max_output")
def triplet_nms(a, b, subjects, predicates, objects, threshold, max_output, mask):
    return kernels.triplet_nms(
        a, b, subjects, predicates, objects, threshold, max_output, mask=mask
    )


def check(kept, expected):
    """Used slots hold the expected indices, in order; unused ones hold 0."""
    assert kept.indices.dtype == np.int32
    assert kept.mask.dtype == bool
    slots = len(kept.mask)
    np.testing.assert_array_equal(kept.mask, np.arange(slots) < len(expected))
    padded = list(expected) + [0] * (slots - len(expected))
    np.testing.assert_array_equal(kept.indices, padded)


@pytest.mark.parametrize("max_output", [5, 40])
@cases.settings
@hypothesis.given(cases.boxes(N), cases.scores(N), cases.masks(N), cases.thresholds)
def test_nms(max_output, boxes, scores, mask, threshold):
    expected = reference.nms(boxes, scores, threshold, max_output, mask=mask)
    check(nms(boxes, scores, threshold, max_output, mask), expected)


@cases.settings
@hypothesis.given(cases.boxes(N), cases.masks(N), cases.thresholds)
def test_nms_of_ranked_boxes(boxes, mask, threshold):
    expected = reference.nms(boxes, np.zeros(N), threshold, N, mask=mask)
    check(nms(boxes, None, threshold, N, mask), expected)


@cases.settings
@hypothesis.given(
    cases.boxes(N), cases.scores(N), cases.classes(N), cases.masks(N), cases.thresholds
)
def test_class_aware_nms(boxes, scores, classes, mask, threshold):
    expected = reference.class_aware_nms(boxes, scores, classes, threshold, N, mask=mask)
    check(class_aware_nms(boxes, scores, classes, threshold, N, mask), expected)


@cases.settings
@hypothesis.given(
    cases.boxes(N),
    cases.boxes(N),
    st.tuples(cases.classes(N), cases.classes(N), cases.classes(N)),
    cases.masks(N),
    cases.thresholds,
)
def test_triplet_nms(subject_boxes, object_boxes, names, mask, threshold):
    arguments = (subject_boxes, object_boxes, *names, threshold, N)
    expected = reference.triplet_nms(*arguments, mask=mask)
    check(triplet_nms(*arguments, mask), expected)


@hypothesis.settings(cases.settings, max_examples=4)
@hypothesis.given(cases.seeds, cases.thresholds)
def test_many_blocks(seed, threshold):
    """Candidates beyond one block: survivors of earlier blocks count, and slots fill up midway."""
    rng = np.random.default_rng(seed)
    boxes, scores = cases.crowd(rng, 700, places=200), cases.eighths(rng.integers(0, 9, 700))
    expected = reference.nms(boxes, scores, threshold, 700)
    check(nms(boxes, scores, threshold, 300), expected[:300])
    check(nms(boxes, scores, threshold, 10), expected[:10])


def test_suppression_is_strictly_above_the_threshold():
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 19]], np.float32)  # IoU exactly 1/2
    scores = np.array([0.5, 0.75], np.float32)
    check(nms(boxes, scores, 0.5, 2), [1, 0])
    check(nms(boxes, scores, 0.499, 2), [1])


def test_a_suppressed_box_does_not_suppress():
    boxes = np.array([[0, 0, 9, 9], [4, 0, 13, 9], [8, 0, 17, 9]], np.float32)  # IoU 3/7, 3/7, 1/9
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    check(nms(boxes, scores, 0.4, 3), [0, 2])


def test_nothing_valid_and_nothing_there():
    boxes, scores = np.zeros((N, 4), np.float32), np.zeros(N, np.float32)
    check(nms(boxes, scores, 0.5, 5, np.zeros(N, bool)), [])
    check(nms(boxes[:0], scores[:0], 0.5, 5), [])


def test_padding_changes_nothing():
    rng = np.random.default_rng(2)
    boxes, scores = cases.crowd(rng, 300), cases.eighths(rng.integers(0, 9, 300))
    bare = nms(boxes, scores, 0.5, 50)
    assert 5 < bare.mask.sum() < 50
    # The padding would win and suppress everything, if it took part.
    wide = np.tile(np.array([0, 0, 99, 99], np.float32), (300, 1))
    padded = nms(
        np.concatenate([boxes, wide]),
        np.concatenate([scores, np.full(300, 2, np.float32)]),
        0.5,
        50,
        np.arange(600) < 300,
    )
    check(padded, np.asarray(bare.indices)[bare.mask])


def test_vmap_equals_a_loop():
    rng = np.random.default_rng(3)
    boxes = np.stack([cases.crowd(rng, 600, places) for places in (2, 20, 150)])
    scores = cases.eighths(rng.integers(0, 9, (3, 600)))
    mask = np.arange(600) < np.array([[600], [50], [500]])
    batch = jax.jit(jax.vmap(lambda *x: kernels.nms(*x[:2], 0.5, 60, mask=x[2])))(
        boxes, scores, mask
    )
    for i in range(3):
        expected = reference.nms(boxes[i], scores[i], 0.5, 60, mask=mask[i])
        check(jax.tree.map(lambda x: x[i], batch), expected)  # noqa: B023
