"""Anchors and their labels against golden arrays."""

import jax
import numpy as np
import pytest

from fnet_jax.anchors import base_anchors, normal_anchors, shifted_anchors
from fnet_jax.targets import AnchorOptions, anchor_labels, sample_anchors


def test_base_anchors(golden):
    g = golden("anchors")
    scales, ratios = g["kmeans_scales"], g["kmeans_ratios"]
    # The files hold float32 copies of decimals of three digits.
    scales, ratios = np.round(scales.astype(np.float64), 3), np.round(ratios.astype(np.float64), 3)
    np.testing.assert_allclose(base_anchors(scales, ratios), g["kmeans_base"], rtol=1e-6)
    small = base_anchors(scales * 160 / 600, ratios)
    np.testing.assert_allclose(small, g["kmeans_base_scale160"], rtol=1e-6)


def test_normal_anchors(golden):
    g = golden("anchors")
    scales, ratios = normal_anchors()
    np.testing.assert_array_equal(scales, g["normal_scales"])
    np.testing.assert_array_equal(ratios, g["normal_ratios"])
    np.testing.assert_array_equal(base_anchors(scales, ratios), g["normal_base"])


@pytest.mark.parametrize("kind", ["kmeans", "normal"])
def test_shifted_anchors(golden, kind):
    g = golden("anchors")
    height, width = map(int, g["feat_hw"])
    shifted = shifted_anchors(g[f"{kind}_base"], height, width)
    np.testing.assert_allclose(shifted, g[f"{kind}_shifted"], rtol=1e-5)


@pytest.mark.parametrize("case", ["vrd", "msdn", "padded"])
def test_anchor_labels(golden, case):
    g = golden("anchor_targets")
    base = base_anchors(
        np.round(g["anchor_scales"].astype(np.float64), 6),
        np.round(g["anchor_ratios"].astype(np.float64), 6),
    )
    height, width = map(int, g[f"{case}_im_hw"] // g["stride"])
    gt, im_info = g[f"{case}_gt"], g[f"{case}_im_info"]
    negative, positive = map(float, g[f"{case}_neg_pos"])
    options = AnchorOptions(
        negative, positive, batch_size=int(g[f"{case}_batch_size"]), foreground_fraction=1.0
    )
    # Unused ground-truth slots must not matter.
    boxes = np.concatenate([gt[:, :4], np.zeros((3, 4), np.float32)])
    mask = np.arange(len(boxes)) < len(gt)
    valid = (im_info[:2] // g["stride"]).astype(np.int32)
    found = jax.jit(
        lambda b, m, v: anchor_labels(base, (height, width), v, im_info, b, m, options)
    )(boxes, mask, valid)

    def rows(x, channels):  # (A * channels, h, w) -> (h*w*A, channels)
        return x.reshape(-1, channels, height, width).transpose(2, 3, 0, 1).reshape(-1, channels)

    labels = rows(g[f"{case}_labels"].reshape(-1, height, width), 1)[:, 0]
    np.testing.assert_array_equal(found.labels, labels)
    targets = rows(g[f"{case}_targets"], 4)
    np.testing.assert_allclose(found.deltas, targets, rtol=1e-5, atol=2e-5)
    inside = rows(g[f"{case}_inside_weights"], 4)
    np.testing.assert_array_equal(inside, np.repeat(labels[:, None] == 1, 4, axis=1))
    # The loss never uses outside weights: they are 1 / (number of labelled anchors).
    outside = rows(g[f"{case}_outside_weights"], 4)
    labelled = np.where(labels[:, None] >= 0, 1.0 / np.sum(labels >= 0), 0.0)
    np.testing.assert_allclose(outside, np.repeat(labelled, 4, axis=1), rtol=1e-5)
    # The batch is exactly as large as what there is: sampling keeps all.
    sampled = sample_anchors(jax.random.key(0), found, options)
    np.testing.assert_array_equal(sampled.labels, labels)
