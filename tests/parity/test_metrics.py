"""Recall counts, detections and average precision against the golden arrays."""

import json
import types

import numpy as np
import pytest

from fnet_jax.decode import class_boxes
from fnet_jax.evaluate import interpret_objects
from fnet_jax.metrics import DetectionAP, FNetRecall, Triplets
from tests.conftest import golden_dir

NAMES = sorted(json.loads((golden_dir() / "model_config.json").read_text()))


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("metrics")


def add_image(recall, arrays, index):
    image = {
        key.split("_", 1)[1]: value
        for key, value in arrays.items()
        if key.startswith(f"im{index:02d}_")
    }
    subjects, objects = np.nonzero(image["gt_relationships"])
    rows = np.stack([subjects, objects, image["gt_relationships"][subjects, objects]], axis=1)
    return recall.update(
        image["gt_objects"][:, :4],
        image["gt_objects"][:, 4].astype(int),
        rows,
        Triplets(
            image["sub_ids"],
            image["pred_ids"],
            image["obj_ids"],
            image["sub_boxes"],
            image["obj_boxes"],
        ),
    )


def new_recall(arrays):
    return FNetRecall(arrays["top_Ns"].tolist(), float(arrays["thres"]))


def test_recall(arrays):
    recall = new_recall(arrays)
    for index in range(int(arrays["n_images"])):
        hits = add_image(recall, arrays, index)
        assert hits.annotated == arrays["rel_cnt"][index]
        np.testing.assert_array_equal(hits.relationship, arrays["rel_correct"][index])
        np.testing.assert_array_equal(hits.predicate, arrays["pred_correct"][index])
        np.testing.assert_array_equal(hits.phrase, arrays["phrase_correct"][index])
    result = recall.compute()
    for kind, key in (("relationship", "rel"), ("predicate", "pred"), ("phrase", "phrase")):
        for n, expected in zip(arrays["top_Ns"], arrays[f"total_{key}_recall"], strict=True):
            assert np.float32(result[f"{kind}_recall@{n}"]) == expected
    assert result["annotated_relationships"] == arrays["rel_cnt"].sum()


def test_merged_recall(arrays):
    whole, left, right = (new_recall(arrays) for _ in range(3))
    for index in range(int(arrays["n_images"])):
        add_image(whole, arrays, index)
        add_image(left if index % 3 else right, arrays, index)
    left.merge(right)
    assert left.compute() == whole.compute()


def test_average_precision(arrays):
    gt, detected = arrays["voc_gt"], arrays["voc_dets"]
    ap = DetectionAP(num_classes=2)
    for image in np.union1d(gt[:, 0], detected[:, 0]):
        annotated, found = gt[gt[:, 0] == image], detected[detected[:, 0] == image]
        ap.update(
            annotated[:, 1:5],
            np.ones(len(annotated)),
            found[:, 2:6],
            found[:, 1],
            np.ones(len(found)),
            difficult=annotated[:, 5] > 0,
        )
    curve = ap.curve(1)
    np.testing.assert_allclose(curve.recall, arrays["voc_rec"], atol=1e-6)
    np.testing.assert_allclose(curve.precision, arrays["voc_prec"], atol=1e-6)
    assert curve.area() == pytest.approx(float(arrays["voc_ap"]), abs=1e-6)
    assert curve.eleven_points() == pytest.approx(float(arrays["voc_ap_07"]), abs=1e-6)
    assert ap.compute() == {"mAP": curve.area(), "annotated_classes": 1}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["nogt", "gt"])
@pytest.mark.parametrize(("nms_name", "nms"), [("off", None), ("40", 0.4)])
def test_detections(golden, name, mode, nms_name, nms):
    """What mAP is computed from, out of the stored network outputs."""
    model, expected = golden(f"model_{name}"), golden(f"interpret_{name}")
    expected = expected[f"{mode}_objects_nms{nms_name}"]
    probabilities = model[f"{mode}_cls_prob_object"]
    rois = model[f"{mode}_object_rois"][:, 1:]
    im_info = model["im_info"].reshape(-1)
    if mode == "gt":  # given boxes are not refined
        candidates = np.repeat(rois[:, None] / im_info[2], probabilities.shape[1], axis=1)
    else:
        deltas = model[f"{mode}_bbox_object"].reshape(*probabilities.shape, 4)
        candidates = np.asarray(class_boxes(rois, deltas, im_info))
    graph = types.SimpleNamespace(
        roi_mask=np.ones(len(rois), bool),
        class_probs=probabilities,
        class_boxes=candidates,
    )
    boxes, scores, classes = interpret_objects(graph, nms)
    np.testing.assert_array_equal(classes, expected[:, 0])
    np.testing.assert_array_equal(scores, expected[:, 5])
    np.testing.assert_allclose(boxes, expected[:, 1:5], rtol=1e-5, atol=1e-3)
