"""The kernels at the model's real sizes, on the inputs of the benchmarks, against plain NumPy."""

import jax
import numpy as np
import pytest

from benchmarks import inputs
from benchmarks.kernels import cluster_distinct_pairs
from fnet_jax import kernels

KINDS = {"trained": inputs.trained_boxes, "random": inputs.random_boxes}


def greedy_nms(boxes: np.ndarray, threshold: float, count: int) -> list[int]:
    """Kept indices of boxes in rank order; float32 products decide, as in the kernel."""
    x1, y1, x2, y2 = boxes.T
    area = (x2 - x1 + 1) * (y2 - y1 + 1)
    left, kept = np.arange(len(boxes)), []
    while len(left) and len(kept) < count:
        best, left = left[0], left[1:]
        kept.append(int(best))
        width = np.minimum(x2[best], x2[left]) - np.maximum(x1[best], x1[left]) + 1
        height = np.minimum(y2[best], y2[left]) - np.maximum(y1[best], y1[left]) + 1
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        left = left[shared <= np.float32(threshold) * (area[best] + area[left] - shared)]
    return kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("threshold", "count"), [inputs.TEST_NMS, inputs.TRAIN_NMS])
def test_nms(kind, threshold, count):
    rng = np.random.default_rng(1)
    # Whole pixels: areas and their products are exact, fused or not.
    boxes = np.round(KINDS[kind](rng, inputs.PRE_NMS))
    scores = inputs.descending_scores(rng, inputs.PRE_NMS)
    kept = jax.jit(kernels.nms, static_argnums=(2, 3))(boxes, scores, threshold, count)
    expected = greedy_nms(boxes, threshold, count)
    np.testing.assert_array_equal(np.asarray(kept.indices)[kept.mask], expected)


@pytest.mark.parametrize("trained", [True, False])
def test_clustering(trained):
    """The same pairs lie together, whatever the clusters are called."""
    rng = np.random.default_rng(2)
    boxes = np.round(inputs.objects(rng, inputs.TEST_OBJECTS, trained=trained))
    scores = inputs.descending_scores(rng, inputs.TEST_OBJECTS)
    found = jax.jit(kernels.cluster_pairs, static_argnums=(2, 3))(boxes, scores, 0.5, 1024)
    expected = cluster_distinct_pairs(boxes, scores, 0.5)
    pair_cluster = np.asarray(found.pair_cluster)
    np.testing.assert_array_equal(pair_cluster, pair_cluster.T)
    mine = pair_cluster[np.triu_indices(len(boxes))]
    together = np.unique(np.stack([mine, expected]), axis=1)
    assert together.shape[1] == int(found.count) == expected.max() + 1
    assert int(found.overflow) == 0
