"""One training step of the small models: every loss term and the gradient of every parameter."""

import functools

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnet_jax import losses
from fnet_jax.builder import class_weights
from fnet_jax.detect import valid_sizes
from fnet_jax.kernels import cluster_pairs
from fnet_jax.losses import LossWeights
from fnet_jax.objective import TrainOptions, graph_losses
from fnet_jax.structures import AnchorTargets, ObjectTargets, PairTargets
from fnet_jax.weights import export_checkpoint
from tests.parity.golden_models import NAMES, arrays, capacities, network, options
from tests.small_model import QUICK

pytestmark = pytest.mark.parametrize("name", NAMES)

# Zero in exact arithmetic (they shift all logits of one softmax): rounding noise only.
PURE_NOISE = (
    "att_region2object_reg.1.bias",
    "att_object2region_obj.1.bias",
    "transform_query.bias",
)


def anchor_targets(name) -> AnchorTargets:
    t, (h, w) = arrays("train", name), arrays("model", name)["nogt_vgg_features"].shape[2:]

    def rows(x, channels):  # (A * channels, h, w) -> (h*w*A, channels)
        return x.reshape(-1, channels, h, w).transpose(2, 3, 0, 1).reshape(-1, channels)

    labels = rows(t["rpn_labels"].reshape(-1, h, w), 1)[:, 0].astype(np.int32)
    return AnchorTargets(labels=labels, deltas=rows(t["rpn_targets"], 4))


def object_targets(name) -> ObjectTargets:
    t = arrays("train", name)
    labels = t["target_object_labels"][:, 0]
    deltas = t["target_bbox_targets"].reshape(len(labels), -1, 4)[np.arange(len(labels)), labels]
    rois = t["target_object_rois"][:, 1:]
    # Scores only order the clustering; the stored rois come without: look them up.
    scores = {tuple(row[1:5]): row[5] for row in t["proposals_train"]}
    return ObjectTargets(
        boxes=rois,
        scores=np.array([scores[tuple(box)] for box in rois], np.float32),
        mask=np.ones(len(labels), bool),
        labels=labels,
        deltas=deltas,
        gt_index=np.zeros(len(labels), np.int32),
        first=t["target_duplicate"][:, 1] > 0,
    )


def loss_terms(name, params, use_weights: bool, dtype=np.float32, stored_features: bool = False):
    """Total loss and terms; `stored_features` replaces the values (not the gradient) of the map."""
    g, t, o = arrays("model", name), arrays("train", name), options(name)
    model, _ = network(name)
    image = np.ascontiguousarray(np.moveaxis(g["image"], 0, -1)).astype(dtype)
    size, map_size = valid_sizes(jnp.asarray(g["im_info"]))
    features = model.apply({"params": params}, image, size, method=model.features)
    if stored_features:
        stored = np.moveaxis(g["nogt_vgg_features"][0], 0, -1)
        features = features + jax.lax.stop_gradient(stored - features)
    logits, deltas = model.apply({"params": params}, features, method=model.rpn_outputs)
    terms = losses.rpn_losses(logits, deltas, anchor_targets(name))
    objects = object_targets(name)
    pairs = PairTargets(
        subjects=t["target_mat_phrase"][:, 0],
        objects=t["target_mat_phrase"][:, 1],
        labels=t["target_phrase_labels"][:, 0],
        mask=np.ones(len(t["target_mat_phrase"]), bool),
    )
    slots = capacities(len(t["target_region_rois"]))
    threshold = o["TRAIN_REGION_NMS_THRES"]
    clusters = cluster_pairs(objects.boxes, objects.scores, threshold, slots[-1])
    weights = tuple(
        tuple(t[f"{kind}_weights"].tolist()) if use_weights else None
        for kind in ("object", "predicate")
    )
    opts = TrainOptions(
        object_weights=weights[0], predicate_weights=weights[1], subgraph_capacities=slots
    )
    key = jax.random.key(0)
    terms |= graph_losses(model, params, features, map_size, objects, pairs, clusters, key, opts)
    w = o["loss_weights"]
    total = losses.weighted_total(
        terms,
        LossWeights(
            w["cls_obj"],
            w["reg_obj"],
            w["cls_pred"],
            w["nms"],
            w["rpn_in_total"],
            w["rpn_box_in_rpn"],
        ),
    )
    return total, (terms, clusters)


def test_targets_are_consistent(name):
    """The stored sampled targets and ours agree on subgraphs and on which parts a loss sees."""
    t, o = arrays("train", name), options(name)
    objects = object_targets(name)
    slots = capacities(len(t["target_region_rois"]))[-1]
    clusters = cluster_pairs(objects.boxes, objects.scores, o["TRAIN_REGION_NMS_THRES"], slots)
    count = int(clusters.count)
    np.testing.assert_array_equal(clusters.boxes[:count], t["target_region_rois"][:, 1:])
    np.testing.assert_array_equal(clusters.incidence[:count], t["target_mat_region"])
    np.testing.assert_array_equal(clusters.incidence[:count].T, t["target_mat_object"])
    subjects, others, regions = t["target_mat_phrase"].T
    np.testing.assert_array_equal(np.asarray(clusters.pair_cluster)[subjects, others], regions)
    np.testing.assert_array_equal(objects.labels > 0, t["target_duplicate"][:, 0] > 0)
    inside = t["target_bbox_inside_weights"].reshape(len(objects.labels), -1, 4)
    expected = np.zeros_like(inside)
    rows = np.flatnonzero(objects.labels)
    expected[rows, objects.labels[rows]] = 1
    np.testing.assert_array_equal(inside, expected)
    for kind in ("object", "predicate"):
        weights = class_weights(t[f"inverse_weight_{kind}"])
        np.testing.assert_allclose(t[f"{kind}_weights"], weights, rtol=1e-6)


@functools.cache
def both_losses(name):
    """With class weights ("w") and without ("u"), in one program."""
    _, params = network(name)
    return jax.jit(lambda p: {kind: loss_terms(name, p, kind == "w") for kind in "wu"})(params)


@pytest.mark.parametrize("kind", ["w", "u"])
def test_losses(name, kind):
    t = arrays("train", name)
    total, (terms, _) = both_losses(name)[kind]
    w = options(name)["loss_weights"]
    found = {
        "loss_cls_obj": terms["object_class"],
        "loss_reg_obj": terms["object_box"],
        "loss_cls_rel": terms["predicate"],
        "loss_nms": terms["duplicate"],
        "rpn_loss_cls": terms["rpn_class"],
        "rpn_loss_box": terms["rpn_box"],
        "rpn_loss": terms["rpn_class"] + w["rpn_box_in_rpn"] * terms["rpn_box"],
        "total": total,
    }
    found["loss"] = total - w["rpn_in_total"] * found["rpn_loss"]
    for key, value in found.items():
        np.testing.assert_allclose(value, t[f"loss_{kind}_{key}"], rtol=1e-5, err_msg=key)


def assert_gradients(name, gradient, tolerance, folder):
    """Every array within `tolerance` of its norm."""
    t = arrays("train", name)
    # Written as the original names and lays out its parameters, then compared key by key.
    export_checkpoint(folder / "gradient.h5", jax.tree.map(np.asarray, gradient))
    with h5py.File(folder / "gradient.h5") as content:
        found = {key: content[key][()] for key in content}
    assert set(found) == {key.removeprefix("grad.") for key in t if key.startswith("grad.")}
    wrong = {}
    for key, value in found.items():
        expected = t["grad." + key]
        if key.endswith(PURE_NOISE):
            assert np.max(np.abs(value)) < 1e-6 and np.max(np.abs(expected)) < 1e-5, key
            continue
        error = np.linalg.norm(value - expected) / np.linalg.norm(expected)
        if not error <= tolerance:
            wrong[key] = float(error)
    assert not wrong


def test_gradients(name, tmp_path):
    """In float32, from the stored feature map on, and back through the whole backbone.

    From the image on, rounding in thirteen convolutions moves the features by 2e-5, which is enough
    to put one or two of the ReLUs behind them on the other side of 0; see the next test for that.
    """
    o = options(name)
    if o["arch"] == "FN_v4s" and o["geometry"].endswith("v2"):
        pytest.skip("sin(100 log(dx/w)) in message passing flips ReLUs too: double precision only")
    _, params = network(name)
    gradient = jax.jit(jax.grad(lambda p: loss_terms(name, p, True, stored_features=True)[0]))
    assert_gradients(name, gradient(params), 1e-3, tmp_path)


def test_gradients_in_double_precision(name, tmp_path):
    """From the image on, free of rounding: what remains is the golden arrays' own."""
    _, params = network(name)
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        objective = lambda p: loss_terms(name, p, True, np.float64)[0]  # noqa: E731
        gradient = jax.jit(jax.grad(objective), compiler_options=QUICK)(params)
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(gradient))
        assert_gradients(name, gradient, 1e-4, tmp_path)
