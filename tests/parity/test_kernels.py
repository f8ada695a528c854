"""The kernels against the golden arrays: indices and partitions equal, floats to 1e-5 relative."""

import functools

import jax
import numpy as np
import pytest

from fnet_jax import kernels


def names(arrays, prefix):
    """The rest of every array name that starts with `prefix`."""
    return [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]


def test_encode_boxes(golden):
    arrays = golden("boxes")
    targets = kernels.encode_boxes(arrays["ex"], arrays["gt"])
    # Near-equal sides have a log near 0: float32 rounds the ratio 1 +- eps before it, / 0.2.
    np.testing.assert_allclose(targets, arrays["targets"], rtol=1e-5, atol=6e-7)


def test_decode_boxes(golden):
    arrays = golden("boxes")
    decoded = kernels.decode_boxes(arrays["ex"], arrays["deltas"])
    # A corner near 0 is the difference of a centre and a half side of hundreds of pixels, each
    # rounded at 2^-24 relative.
    error = np.abs(decoded - arrays["decoded"]).max(axis=-1)
    np.testing.assert_array_less(error, 1e-6 * np.abs(arrays["decoded"]).max(axis=-1) + 1e-6)


def test_clip_boxes(golden):
    arrays = golden("boxes")
    height, width = arrays["im_hw"]
    clipped = kernels.clip_boxes(arrays["decoded"], height, width)
    np.testing.assert_array_equal(clipped, arrays["decoded_clipped"])


def test_pairwise_iou(golden):
    arrays = golden("boxes")
    overlaps = kernels.pairwise_iou(arrays["q_a"], arrays["q_b"])
    np.testing.assert_allclose(overlaps, arrays["overlaps"], rtol=1e-5)


def test_union_boxes(golden):
    arrays = golden("boxes")
    # These rows are (batch, x1, y1, x2, y2, score).
    union = kernels.union_boxes(arrays["union_a"][:, 1:5], arrays["union_b"][:, 1:5])
    np.testing.assert_array_equal(union, arrays["union"][:, 1:5])


def test_nms(golden):
    arrays = golden("nms")
    cases = names(arrays, "keep_by_score_")
    assert cases
    for case in cases:
        size, percent = case.split("_")
        dets = arrays[f"dets_{size}"]
        kept = jax.jit(kernels.nms, static_argnums=3)(
            dets[:, :4], dets[:, 4], int(percent) / 100, len(dets)
        )
        indices = np.asarray(kept.indices)[np.asarray(kept.mask)]
        np.testing.assert_array_equal(indices, arrays[f"keep_by_score_{case}"])
        np.testing.assert_array_equal(np.sort(indices), arrays[f"keep_{case}"])


def test_class_aware_nms(golden):
    arrays = golden("nms")
    dets, classes = arrays["unary_dets"], arrays["unary_classes"]
    cases = names(arrays, "unary_keep_")
    assert cases
    for percent in cases:
        kept = jax.jit(kernels.class_aware_nms, static_argnums=4)(
            dets[:, :4], dets[:, 4], classes, int(percent) / 100, len(dets)
        )
        indices = np.asarray(kept.indices)[np.asarray(kept.mask)]
        np.testing.assert_array_equal(indices, arrays[f"unary_keep_{percent}"])


def test_triplet_nms(golden):
    arrays = golden("nms")
    cases = names(arrays, "triplet_keep_")
    assert cases
    for percent in cases:
        kept = jax.jit(kernels.triplet_nms, static_argnums=6)(
            arrays["triplet_sub_boxes"],
            arrays["triplet_obj_boxes"],
            arrays["triplet_sub_ids"],
            arrays["triplet_pred_ids"],
            arrays["triplet_obj_ids"],
            int(percent) / 100,
            len(arrays["triplet_sub_ids"]),
        )
        indices = np.asarray(kept.indices)[np.asarray(kept.mask)]
        np.testing.assert_array_equal(indices, arrays[f"triplet_keep_{percent}"])


def cluster(boxes, scores, threshold, capacity):
    jitted = jax.jit(kernels.cluster_pairs, static_argnums=3)
    return jax.tree.map(np.asarray, jitted(boxes, scores, threshold, capacity))


def test_clustering_remembers_the_keeper(golden):
    arrays = golden("nms")
    cases = names(arrays, "retain_map_")
    assert cases
    for case in cases:
        size, percent = case.split("_")
        rois = arrays[f"retain_rois_{size}"]  # (batch, x1, y1, x2, y2, score)
        keepers, expected = np.unique(arrays[f"retain_map_{case}"], return_inverse=True)
        result = cluster(rois[:, 1:5], rois[:, 5], int(percent) / 100, len(keepers) + 9)
        assert result.overflow == 0
        assert result.count == len(keepers)
        np.testing.assert_array_equal(result.pair_cluster.ravel(), expected)


@pytest.mark.parametrize("case", ["small", "full"])
def test_clustering_of_a_graph(golden, case):
    arrays = golden("graph")
    rois = arrays[f"{case}_rois_in"][: len(arrays[f"{case}_object_rois"])]
    check_graph(arrays, case, rois[:, 1:5], rois[:, 5])


def test_clustering_with_equal_scores(golden):
    """With ground-truth boxes every score in sight is 1: the tie rule decides the partition."""
    arrays = golden("graph")
    rois = arrays["gt_object_rois"][:, 1:]
    truth = arrays["gt_gt_rois"]
    # The other objects are proposals, whose scores `object_rois` does not repeat.
    proposals = {tuple(row[1:5]): row[5] for row in arrays["gt_rois_in"]}
    others = [proposals[tuple(box)] for box in rois[len(truth) :]]
    scores = np.concatenate([truth[:, 5], np.array(others, np.float32)])
    check_graph(arrays, "gt", rois, scores)


def check_graph(arrays, case, boxes, scores):
    count = len(arrays[f"{case}_region_rois"])
    result = cluster(boxes, scores, 0.5, count + 9)
    assert result.count == count
    assert result.overflow == 0
    np.testing.assert_array_equal(result.mask, np.arange(len(result.mask)) < count)
    np.testing.assert_array_equal(result.boxes[:count], arrays[f"{case}_region_rois"][:, 1:])
    np.testing.assert_array_equal(result.incidence[:count], arrays[f"{case}_mat_region"])
    np.testing.assert_array_equal(result.incidence[:count].T, arrays[f"{case}_mat_object"])
    subject, obj, subgraph = arrays[f"{case}_mat_phrase"].T
    np.testing.assert_array_equal(result.pair_cluster[subject, obj], subgraph)


def test_roi_align(golden):
    arrays = golden("roi_align")
    features = arrays["features"][0].transpose(1, 2, 0)
    rois, scale = arrays["rois"][:, 1:], float(arrays["spatial_scale"])
    sizes = names(arrays, "out_")
    assert sizes
    for size in sizes:
        pool = functools.partial(
            kernels.roi_align, rois=rois, pool_size=int(size), spatial_scale=scale
        )
        pooled, backward = jax.vjp(jax.jit(pool), features)
        (gradient,) = backward(arrays[f"cotangent_{size}"].transpose(0, 2, 3, 1))
        # Both are sums whose terms may cancel, so the error is relative to the largest value.
        check_relative_to_largest(pooled, arrays[f"out_{size}"].transpose(0, 2, 3, 1), 1e-5)
        check_relative_to_largest(gradient, arrays[f"grad_{size}"][0].transpose(1, 2, 0), 1e-5)


def check_relative_to_largest(actual, expected, tolerance):
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=atol)
