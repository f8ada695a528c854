"""Proposals and subgraphs against golden arrays: same boxes, same order, same partition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnet_jax.anchors import base_anchors
from fnet_jax.kernels import cluster_pairs
from fnet_jax.rpn import propose
from fnet_jax.structures import Proposals
from fnet_jax.subgraphs import keep_best, merge_gt_boxes, pairs_among

THRESHOLD = 0.5


@pytest.mark.parametrize("case", ["test", "train", "small", "padded"])
def test_proposals(golden, case):
    g = golden("proposals")
    base = base_anchors(
        np.round(g["anchor_scales"].astype(np.float64), 6),
        np.round(g["anchor_ratios"].astype(np.float64), 6),
    )
    pre, post, threshold, min_size = g[f"{case}_opts"].tolist()
    run = jax.jit(
        lambda fg, deltas, info, size: propose(
            fg,
            deltas,
            base,
            info,
            size,
            pre_nms=int(pre),
            post_nms=int(post),
            nms_threshold=threshold,
            min_size=min_size,
        )
    )
    probs, deltas = g[f"{case}_cls_prob"], g[f"{case}_deltas"]
    rows = []
    for index, info in enumerate(g[f"{case}_im_info"]):
        count = probs.shape[1] // 2
        foreground = probs[index, count:].transpose(1, 2, 0)
        maps = deltas[index].reshape(count, 4, *deltas.shape[2:]).transpose(2, 3, 0, 1)
        size = (info[:2] // g["stride"]).astype(np.int32)
        found = run(foreground, maps, np.pad(info, (0, 2)), size)
        used = np.asarray(found.mask)
        columns = [np.full((used.sum(), 1), index), found.boxes[used], found.scores[used][:, None]]
        rows.append(np.concatenate(columns, axis=1))
    np.testing.assert_allclose(np.concatenate(rows), g[f"{case}_rois"], rtol=1e-5, atol=1e-4)


def padded(rois, slots) -> Proposals:
    extra = slots - len(rois)
    return Proposals(
        boxes=jnp.asarray(np.pad(rois[:, 1:5], ((0, extra), (0, 0)))),
        scores=jnp.asarray(np.pad(rois[:, 5], (0, extra))),
        mask=jnp.arange(slots) < len(rois),
    )


def assert_graph(g, prefix, objects, clusters, pairs):
    used = np.asarray(objects.mask)
    np.testing.assert_array_equal(objects.boxes[used], g[f"{prefix}object_rois"][:, 1:])
    count = int(clusters.count)
    assert int(clusters.overflow) == 0
    np.testing.assert_array_equal(clusters.boxes[:count], g[f"{prefix}region_rois"][:, 1:])
    incidence = np.asarray(clusters.incidence)[:count][:, used]
    np.testing.assert_array_equal(incidence, g[f"{prefix}mat_region"])
    np.testing.assert_array_equal(incidence.T, g[f"{prefix}mat_object"])
    kept = np.asarray(pairs.mask)
    phrase = np.stack([pairs.subjects, pairs.objects, pairs.subgraphs], axis=1)[kept]
    np.testing.assert_array_equal(phrase, g[f"{prefix}mat_phrase"])


@pytest.mark.parametrize("case", ["small", "full"])
def test_graph(golden, case):
    g = golden("graph")
    rois = g[f"{case}_rois_in"]
    objects = keep_best(padded(rois, len(rois) + 7), len(g[f"{case}_object_rois"]))
    slots = len(g[f"{case}_region_rois"]) + 9
    clusters = cluster_pairs(objects.boxes, objects.scores, THRESHOLD, slots, mask=objects.mask)
    pairs = pairs_among(clusters, objects.mask.shape[0], objects.mask)
    assert_graph(g, f"{case}_", objects, clusters, pairs)


def test_graph_with_gt_boxes(golden):
    g = golden("graph")
    gt = g["gt_gt_rois"]
    slots = len(gt) + 3
    gt_mask = jnp.arange(slots) < len(gt)
    gt_boxes = jnp.asarray(np.pad(gt[:, 1:5], ((0, 3), (0, 0))))
    proposals = padded(g["gt_rois_in"], len(g["gt_rois_in"]) + 4)
    objects = merge_gt_boxes(proposals, gt_boxes, gt_mask, THRESHOLD)
    capacity = len(g["gt_region_rois"]) + 9
    clusters = cluster_pairs(objects.boxes, objects.scores, THRESHOLD, capacity, mask=objects.mask)
    pairs = pairs_among(clusters, slots, gt_mask)
    assert_graph(g, "gt_", objects, clusters, pairs)
