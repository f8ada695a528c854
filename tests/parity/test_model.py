"""The three small models, loaded from their published-format files, against golden arrays.

Stage by stage: stored inputs in, stored outputs out. Then from the image, where the tolerance is a
few times the stored noise: what float32 itself cannot resolve.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnet_jax.detect import detect, graph_of, valid_sizes
from fnet_jax.kernels import cluster_pairs, roi_align
from fnet_jax.model import FactorizableNet
from fnet_jax.rpn import propose
from fnet_jax.structures import Pairs, Proposals
from fnet_jax.subgraphs import keep_best, pairs_among
from tests.parity.golden_models import (
    NAMES,
    arrays,
    assert_close,
    call,
    last_step,
    network,
    options,
    test_options,
)

STAGE = 2e-5  # of the largest magnitude; a stage alone loses no more than float32 rounding
MODES = ("nogt_", "gt_")

pytestmark = pytest.mark.parametrize("name", NAMES)


def channels_last(x):  # (n, c, h, w) -> (n, h, w, c)
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def channels_first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def test_backbone(name):
    g = arrays("model", name)
    image = channels_last(g["image"][None])[0]
    size = np.array(image.shape[:2], np.int32)
    found = call(name, FactorizableNet.features, image, size)
    assert_close(channels_first(found[None]), g["nogt_vgg_features"], STAGE, "vgg_features")


def test_rpn(name):
    g = arrays("model", name)
    features = channels_last(g["nogt_vgg_features"])[0]
    (logits, deltas), state = call(
        name,
        FactorizableNet.rpn_outputs,
        features,
        capture_intermediates=lambda module, _: module.name == "conv",
        mutable=["intermediates"],
    )
    hidden = jax.nn.relu(state["intermediates"]["rpn"]["conv"]["__call__"][0])
    assert_close(channels_first(hidden), g["nogt_rpn_conv1"], STAGE, "rpn_conv1")
    h, w = features.shape[:2]
    score = logits.reshape(1, h, w, -1)
    assert_close(channels_first(score), g["nogt_rpn_cls_score"], STAGE, "rpn_cls_score")
    probs = jax.nn.softmax(logits, axis=2).reshape(1, h, w, -1)
    assert_close(channels_first(probs), g["nogt_rpn_cls_prob"], STAGE, "rpn_cls_prob")
    boxes = deltas.reshape(1, h, w, -1)
    assert_close(channels_first(boxes), g["nogt_rpn_bbox_pred"], STAGE, "rpn_bbox_pred")


def rpn_proposals(name, kind="test"):
    """Proposals from the stored RPN outputs, with the options of `kind`."""
    g, o = arrays("model", name), options(name)
    model, _ = network(name)
    probs = channels_last(g["nogt_rpn_cls_prob"])[0]
    deltas = channels_last(g["nogt_rpn_bbox_pred"])[0]
    foreground = probs[..., probs.shape[-1] // 2 :]
    rpn = o[f"rpn_{kind}"]
    _, map_size = valid_sizes(jnp.asarray(g["im_info"]))
    return propose(
        foreground,
        deltas.reshape(*deltas.shape[:2], -1, 4),
        model.base_anchors,
        g["im_info"],
        map_size,
        pre_nms=rpn["num_box_pre_NMS"],
        post_nms=rpn["num_box_post_NMS"],
        nms_threshold=rpn["nms_thres"],
        min_size=rpn["min_size"],
    )


def test_proposals(name):
    g = arrays("model", name)
    found = rpn_proposals(name)
    count = int(jnp.sum(found.mask))
    assert count == len(g["nogt_proposals"])
    boxes = g["nogt_proposals"][:, 1:5]
    np.testing.assert_allclose(found.boxes[:count], boxes, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(found.scores[:count], g["nogt_proposals"][:, 5])


def test_proposals_train(name):
    expected = arrays("train", name)["proposals_train"]
    found = rpn_proposals(name, "train")
    count = int(jnp.sum(found.mask))
    assert count == len(expected)
    np.testing.assert_allclose(found.boxes[:count], expected[:, 1:5], rtol=1e-5, atol=1e-4)
    # The stored train-mode probabilities come from another run of the same network.
    np.testing.assert_allclose(found.scores[:count], expected[:, 5], atol=1e-6)


def test_graph(name):
    g, o = arrays("model", name), options(name)
    rois = g["nogt_proposals"]
    proposals = Proposals(rois[:, 1:5], rois[:, 5], np.ones(len(rois), bool))
    objects = keep_best(proposals, o["TEST_BBOX_NUM"])
    slots = len(rois) ** 2
    clusters = cluster_pairs(objects.boxes, objects.scores, o["TEST_REGION_NMS_THRES"], slots)
    count = int(clusters.count)
    assert count == int(g["nogt_n_regions"])
    np.testing.assert_array_equal(objects.boxes, g["nogt_object_rois"][:, 1:])
    np.testing.assert_array_equal(clusters.boxes[:count], g["nogt_region_rois"][:, 1:])
    np.testing.assert_array_equal(clusters.incidence[:count], g["nogt_mat_region"])
    np.testing.assert_array_equal(clusters.incidence[:count].T, g["nogt_mat_object"])
    pairs = pairs_among(clusters, len(objects.boxes), objects.mask)
    phrase = np.stack([pairs.subjects, pairs.objects, pairs.subgraphs], axis=1)
    np.testing.assert_array_equal(phrase, g["nogt_mat_phrase"])


@pytest.mark.parametrize("mode", MODES)
def test_pooled_features(name, mode):
    g = arrays("model", name)
    features = channels_last(g["nogt_vgg_features"])[0]
    size = features.shape[:2]
    pool = options(name)["pool_size"]
    boxes, regions = g[mode + "object_rois"][:, 1:], g[mode + "region_rois"][:, 1:]
    if mode == "nogt_":
        found = roi_align(features, boxes, pool_size=pool, spatial_scale=1 / 16)
        assert_close(channels_first(found), g["nogt_roi_object"], STAGE, "roi_object")

    def embed(model, x, object_boxes, region_boxes):
        objects = model.object_fc(model.pool(x, object_boxes, size))
        subgraphs = model.subgraph_conv(model.pool(x, region_boxes, size))
        return objects, subgraphs, model.object_box(jax.nn.relu(objects))

    objects, subgraphs, deltas = call(name, embed, features, boxes, regions)
    assert_close(objects, g[mode + "fc_object"], STAGE, "fc_object")
    assert_close(deltas, g[mode + "bbox_object"], STAGE, "bbox_object")
    if mode == "nogt_":
        assert_close(channels_first(subgraphs), g["nogt_fc_region"], STAGE, "fc_region")


def test_message_passing(name):
    g = arrays("model", name)
    inputs = g["nogt_fc_object"], channels_last(g["nogt_fc_region"])
    for number in range(options(name)["MPS_iter"]):
        prefix = f"nogt_mps{number}_"
        (objects, subgraphs), state = call(
            name,
            lambda model, *a, number=number: model.message_passing[number](*a),
            *inputs,
            g["nogt_object_rois"][:, 1:],
            np.ones(len(g["nogt_object_rois"]), bool),
            g["nogt_mat_region"],
            capture_intermediates=True,
            mutable=["intermediates"],
        )
        step = state["intermediates"][f"message_passing_{number}"]
        message = step["subgraph_to_object_out"]["__call__"][0]
        assert_close(message, g[prefix + "region2object"], STAGE, prefix + "region2object")
        if prefix + "object2object" in g:
            relation = step["relation"]["__call__"][0]
            # sin(100 * log(dx / w)) multiplies rounding of the boxes' centres by thousands.
            assert_close(relation, g[prefix + "object2object"], 5e-4, prefix + "object2object")
        assert_close(objects, g[prefix + "object"], 5e-4, prefix + "object")
        assert_close(channels_first(subgraphs), g[prefix + "region"], STAGE, prefix + "region")
        inputs = g[prefix + "object"], channels_last(g[prefix + "region"])


def pairs_from(matrix) -> Pairs:
    subjects, objects, subgraphs = matrix.T.astype(np.int32)
    return Pairs(subjects, objects, subgraphs, np.ones(len(matrix), bool))


def test_predicates(name):
    g = arrays("model", name)
    subjects, objects, subgraphs = g["nogt_mat_phrase"].T
    after = "nogt_" + last_step(name)
    vectors, maps = g[after + "object"], channels_last(g[after + "region"])

    def infer(model, x, y):
        inference = model.predicate_inference
        s, o, r = inference.project(x, y)
        phrase = inference.infer(s[subjects], o[objects], r[subgraphs])
        scores = model.predicate_score(jax.nn.relu(phrase)), model.object_score(jax.nn.relu(x))
        return phrase, *map(jax.nn.softmax, scores)

    phrase, predicates, classes = call(name, infer, vectors, maps)
    assert_close(phrase, g["nogt_phrase_features"], STAGE, "phrase_features")
    assert_close(predicates, g["nogt_cls_prob_predicate"], STAGE, "cls_prob_predicate")
    assert_close(classes, g["nogt_cls_prob_object"], STAGE, "cls_prob_object")


@pytest.mark.parametrize("mode", MODES)
def test_duplicate_removal(name, mode):
    g = arrays("model", name)
    vectors = np.maximum(g[mode + last_step(name) + "object"], 0)  # post-ReLU at test
    probabilities = g[mode + "cls_prob_object"][:, 1:].max(axis=1)
    boxes = g[mode + "object_rois"][:, 1:]
    factor, state = call(
        name,
        FactorizableNet.duplicate_factor,
        vectors,
        probabilities,
        boxes,
        np.ones(len(boxes), bool),
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    assert_close(factor[:, None], g[mode + "reranked_score"], 5e-4, "reranked_score")
    if mode == "nogt_":
        inside = state["intermediates"]["duplicate_removal"]
        visual, relation = inside["visual"]["__call__"][0], inside["relation"]["__call__"][0]
        assert_close(visual, g["nogt_nms_visual"], STAGE, "nms_visual")
        assert_close(relation, g["nogt_nms_relation"], 5e-4, "nms_relation")


@pytest.mark.parametrize("mode", MODES)
def test_graph_stage(name, mode):
    """Stored features and rois in, everything that detection needs out, in one program."""
    g, o = arrays("model", name), options(name)
    model, params = network(name)
    features = channels_last(g["nogt_vgg_features"])[0]
    boxes = g[mode + "object_rois"][:, 1:]
    given = mode == "gt_"
    scores = g["nogt_proposals"][: len(boxes), 5]
    if given:  # annotated boxes have score 1, the others the score of their proposal
        rows = {tuple(r[1:5]): r[5] for r in g["nogt_proposals"]}
        scores = np.array([rows.get(tuple(b), 1.0) for b in boxes], np.float32)
    objects = Proposals(boxes, scores, np.ones(len(boxes), bool))
    slots = int(g[mode + "n_regions"]) + 9
    clusters = cluster_pairs(boxes, scores, o["TEST_REGION_NMS_THRES"], slots)
    assert int(clusters.count) == int(g[mode + "n_regions"])
    count = len(g["gt_objects"]) if given else len(boxes)
    pairs = pairs_among(clusters, count, np.ones(count, bool))
    phrase = np.stack([pairs.subjects, pairs.objects, pairs.subgraphs], axis=1)
    np.testing.assert_array_equal(phrase, g[mode + "mat_phrase"])
    incidence = clusters.incidence[: int(clusters.count)]
    np.testing.assert_array_equal(incidence, g[mode + "mat_region"])
    np.testing.assert_array_equal(incidence.T, g[mode + "mat_object"])

    @jax.jit
    def run(params):
        outputs = graph_of(
            model,
            params,
            features,
            features.shape[:2],
            objects,
            clusters,
            capacities=(slots - 3, slots),
        )
        columns = pairs.subjects, pairs.objects, pairs.subgraphs
        logits = model.apply({"params": params}, outputs, *columns, method=model.predicates)
        return outputs, logits

    outputs, logits = run(params)
    deltas = outputs.box_deltas.reshape(len(boxes), -1)
    classes, predicates = jax.nn.softmax(outputs.object_logits), jax.nn.softmax(logits)
    assert_close(deltas, g[mode + "bbox_object"], STAGE, "bbox_object")
    assert_close(outputs.objects, g[mode + last_step(name) + "object"], 5e-4, "object vectors")
    assert_close(classes, g[mode + "cls_prob_object"], 5e-4, "cls_prob_object")
    assert_close(predicates, g[mode + "cls_prob_predicate"], 5e-4, "cls_prob_predicate")
    if given:
        subjects, others, regions = g["gt_mat_phrase"].T

        phrase = model.apply(
            {"params": params},
            method=lambda m: m.predicate_inference.infer(
                outputs.subject_term[subjects],
                outputs.object_term[others],
                outputs.subgraph_term[regions],
            ),
        )
        assert_close(phrase, g["gt_phrase_features"], 5e-4, "phrase_features")


@functools.cache
def from_image(name, mode, padding=0):
    g = arrays("model", name)
    model, params = network(name)
    image = channels_last(g["image"][None])[0]
    image = np.pad(image, ((0, padding), (0, padding), (0, 0)))
    gt = g["gt_objects"]
    example = {
        "image": image,
        "im_info": g["im_info"],
        "gt_boxes": np.pad(gt[:, :4], ((0, 2), (0, 0))),
        "gt_classes": np.pad(gt[:, 4].astype(np.int32), (0, 2)),
    }
    opts = test_options(name, mode)
    return jax.jit(lambda p, e: detect(model, p, e, opts))(params, example)


@pytest.mark.parametrize("mode", MODES)
def test_from_image(name, mode):
    g = arrays("model", name)
    graph = from_image(name, mode)

    def close(actual, key, scale=1.0):
        noise = float(g["noise." + mode + key])
        np.testing.assert_allclose(actual, scale * g[mode + key], atol=4 * noise * scale, rtol=0)

    count = int(np.sum(graph.roi_mask))
    assert count == len(g[mode + "object_rois"])
    assert int(graph.num_subgraphs) == int(g[mode + "n_regions"])
    assert int(graph.overflow) == 0
    close(graph.class_probs[:count], "cls_prob_object")
    best = g[mode + "cls_prob_object"][:, 1:].max(axis=1)
    noise = g["noise." + mode + "cls_prob_object"] + g["noise." + mode + "reranked_score"]
    scores = best * g[mode + "reranked_score"][:, 0]
    np.testing.assert_allclose(graph.scores[:count], scores, atol=4 * float(noise), rtol=0)
    if mode == "nogt_":
        scale = 1 / g["im_info"][2]
        used = np.asarray(graph.proposal_mask)
        boxes = g["nogt_proposals"][:, 1:5] * scale
        atol = 4 * scale * float(g["noise.nogt_proposals"])
        np.testing.assert_allclose(graph.proposals[used], boxes, atol=atol, rtol=0)


@pytest.mark.parametrize("padding", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_padding_changes_nothing(name, padding):
    """Beyond float32 rounding: the same sums in another order."""
    plain, padded = from_image(name, "nogt_"), from_image(name, "nogt_", padding)
    g = arrays("model", name)
    assert int(plain.num_subgraphs) == int(padded.num_subgraphs)
    np.testing.assert_array_equal(plain.object_mask, padded.object_mask)
    np.testing.assert_array_equal(plain.classes, padded.classes)
    atol = float(g["noise.nogt_cls_prob_object"])
    np.testing.assert_allclose(plain.class_probs, padded.class_probs, atol=atol, rtol=0)
    atol = float(g["noise.nogt_proposals"])
    np.testing.assert_allclose(plain.proposals, padded.proposals, atol=atol, rtol=0)
