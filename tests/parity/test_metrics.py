"""Recall counts and average precision against the golden arrays."""

import numpy as np
import pytest

from fnet_jax.metrics import DetectionAP, FNetRecall, Triplets


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
