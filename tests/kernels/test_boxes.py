"""Box arithmetic against the NumPy reference and against numbers worked out by hand."""

import hypothesis
import jax
import numpy as np

from fnet_jax import kernels
from fnet_jax.kernels import reference
from tests.kernels import cases


def test_area_counts_the_last_pixel():
    boxes = np.array([[0, 0, 9, 4], [3, 3, 3, 3], [5, 0, 4, 9], [5, 5, 2, 2]], np.float32)
    np.testing.assert_array_equal(kernels.area(boxes), [50, 1, 0, 0])


def test_iou_by_hand():
    a = np.array([[0, 0, 9, 9], [0, 0, 9, 9], [5, 5, 2, 2]], np.float32)
    b = np.array([[5, 0, 14, 9], [10, 0, 19, 9], [5, 5, 2, 2]], np.float32)
    np.testing.assert_allclose(kernels.iou(a, b), [1 / 3, 0, 0], rtol=1e-6)


@cases.settings
@hypothesis.given(cases.boxes(6), cases.boxes(5))
def test_pairwise_iou(a, b):
    result = jax.jit(kernels.pairwise_iou)(a, b)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, reference.pairwise_iou(a, b), rtol=1e-6)


@cases.settings
@hypothesis.given(cases.boxes(6), cases.boxes(6))
def test_union_boxes(a, b):
    expected = [reference.union_boxes(*pair) for pair in zip(a, b, strict=True)]
    np.testing.assert_array_equal(jax.jit(kernels.union_boxes)(a, b), expected)


def random_boxes(rng, number):
    corner = rng.uniform(-50, 500, (number, 2))
    size = rng.uniform(0, 300, (number, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def test_coding_matches_the_reference_and_inverts():
    rng = np.random.default_rng(0)
    boxes, targets = random_boxes(rng, 100), random_boxes(rng, 100)
    deltas = kernels.encode_boxes(boxes, targets)
    assert deltas.dtype == np.float32
    np.testing.assert_allclose(deltas, reference.encode_boxes(boxes, targets), rtol=1e-5, atol=1e-6)
    decoded = kernels.decode_boxes(boxes, deltas)
    np.testing.assert_allclose(decoded, reference.decode_boxes(boxes, deltas), atol=1e-3)
    np.testing.assert_allclose(decoded, targets, atol=1e-3)


def test_decoding_broadcasts_over_classes():
    rng = np.random.default_rng(1)
    boxes, deltas = random_boxes(rng, 3), rng.normal(size=(3, 5, 4)).astype(np.float32)
    result = kernels.decode_boxes(boxes[:, None], deltas)
    assert result.shape == (3, 5, 4)
    for c in range(5):
        np.testing.assert_allclose(
            result[:, c], reference.decode_boxes(boxes, deltas[:, c]), atol=1e-3
        )


def test_clipping_takes_traced_sizes():
    boxes = np.array([[-5, -5, 50, 50], [3, 4, 5, 6], [70, 70, 80, 80]], np.float32)
    expected = [[0, 0, 29, 19], [3, 4, 5, 6], [29, 19, 29, 19]]
    np.testing.assert_array_equal(reference.clip_boxes(boxes, 20, 30), expected)
    for kind in (np.int32, np.float32):
        clipped = jax.jit(kernels.clip_boxes)(boxes, kind(20), kind(30))
        np.testing.assert_array_equal(clipped, expected)
    np.testing.assert_array_equal(kernels.clip_boxes(boxes, 20, 30), expected)
