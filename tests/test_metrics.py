"""Recall and average precision on cases small enough to work out by hand."""

import json

import numpy as np
import pytest

from fnet_jax import metrics
from fnet_jax.metrics import DetectionAP, FNetRecall, ProposalRecall, Triplets

FAR = (100.0, 100.0, 109.0, 109.0)
BOX = (0.0, 0.0, 9.0, 9.0)
HALF = (0.0, 0.0, 9.0, 4.0)  # IoU exactly 1/2 with BOX, with inclusive pixels only


def triplets(*rows):
    """Rows (subject class, predicate, object class, subject box, object box)."""
    columns = list(zip(*rows, strict=True)) if rows else [[], [], [], [], []]
    classes = [np.array(column, np.int32) for column in columns[:3]]
    boxes = [np.array(column, np.float32).reshape(-1, 4) for column in columns[3:]]
    return Triplets(*classes, *boxes)


def recalls(gt_boxes, gt_classes, relationships, predicted, top_ns=(1, 2)):
    state = FNetRecall(top_ns)
    state.update(np.array(gt_boxes), np.array(gt_classes), np.array(relationships), predicted)
    return state.compute()


def test_overlaps():
    iou = metrics.overlaps([BOX, (0, 0, 4, 4)], [BOX, HALF, FAR, (5, 5, 2, 2)])
    np.testing.assert_allclose(iou, [[1, 0.5, 0, 0], [0.25, 0.5, 0, 0]])
    assert metrics.overlaps([(5, 5, 2, 2)], [(5, 5, 2, 2)]) == 0  # no area, no division by zero
    assert metrics.overlaps(np.zeros((0, 4)), [BOX]).shape == (0, 1)


def test_case_a_overlap_of_exactly_one_half_counts():
    predicted = triplets((1, 1, 2, HALF, FAR))
    assert recalls([BOX, FAR], [1, 2], [[0, 1, 1]], predicted)["relationship_recall@1"] == 1.0
    less = triplets((1, 1, 2, (0, 0, 9, 3.9), FAR))
    assert recalls([BOX, FAR], [1, 2], [[0, 1, 1]], less)["relationship_recall@1"] == 0.0


def test_case_b_one_triplet_may_find_several():
    near = (0, 0, 9, 8)
    rows = [[0, 2, 1], [1, 2, 1]]
    predicted = triplets((1, 1, 2, BOX, FAR))
    assert recalls([BOX, near, FAR], [1, 1, 2], rows, predicted)["relationship_recall@1"] == 1.0


@pytest.mark.parametrize(("found", "expected"), [(1, 0.0), (2, 1.0)])
def test_cases_c_and_d_the_last_annotation_of_a_pair_counts(found, expected):
    result = recalls([BOX, FAR], [1, 2], [[0, 1, 1], [0, 1, 2]], triplets((1, found, 2, BOX, FAR)))
    assert result["relationship_recall@1"] == expected
    assert result["annotated_relationships"] == 1


def test_case_e_repeated_annotations_count_once():
    rows = [[0, 1, 1], [0, 1, 1], [1, 0, 1]]
    result = recalls([BOX, FAR], [1, 2], rows, triplets((1, 1, 2, BOX, FAR)))
    assert result["relationship_recall@1"] == 0.5


def test_case_f_kinds_differ_in_what_they_ask():
    wrong_subject = triplets((3, 1, 2, BOX, FAR))
    result = recalls([BOX, FAR], [1, 2], [[0, 1, 1]], wrong_subject)
    assert result["relationship_recall@1"] == result["phrase_recall@1"] == 0.0
    assert result["predicate_recall@1"] == 1.0
    # Both boxes miss, their union fits.
    moved = triplets((1, 1, 2, (0, 0, 2, 2), (90, 90, 109, 109)))
    result = recalls([BOX, FAR], [1, 2], [[0, 1, 1]], moved)
    assert result["relationship_recall@1"] == result["predicate_recall@1"] == 0.0
    assert result["phrase_recall@1"] == 1.0


def test_cut_offs_and_self_relations():
    predicted = triplets((1, 2, 1, BOX, BOX), (1, 1, 1, BOX, BOX))
    result = recalls([BOX], [1], [[0, 0, 1]], predicted)
    assert (result["relationship_recall@1"], result["relationship_recall@2"]) == (0.0, 1.0)


def test_direction_matters():
    reversed_pair = triplets((2, 1, 1, FAR, BOX))
    result = recalls([BOX, FAR], [1, 2], [[0, 1, 1]], reversed_pair)
    assert all(
        result[f"{kind}_recall@2"] == 0.0 for kind in ("relationship", "predicate", "phrase")
    )


def test_micro_average_and_empty_images():
    state = FNetRecall((50,))
    none = np.zeros((0, 3), int)
    good = triplets((1, 1, 2, BOX, FAR))
    assert state.update([BOX, FAR], [1, 2], none, good).annotated == 0
    assert state.update(np.zeros((0, 4)), [], none, triplets()).annotated == 0
    state.update([BOX, FAR], [1, 2], [[0, 1, 1]], good)
    state.update([BOX, FAR], [1, 2], [[0, 1, 1], [1, 0, 1], [0, 0, 2]], triplets())
    assert state.compute()["relationship_recall@50"] == 0.25


def test_nothing_at_all_is_zero_and_json():
    results = [FNetRecall().compute(), ProposalRecall().compute(), DetectionAP(3).compute()]
    for result in results:
        assert set(result.values()) == {0}
        json.dumps(result, allow_nan=False)


def test_merging_needs_equal_settings():
    for a, b in (
        (FNetRecall((50,)), FNetRecall((100,))),
        (ProposalRecall(50), ProposalRecall(100)),
        (DetectionAP(3), DetectionAP(4)),
    ):
        with pytest.raises(ValueError, match="can be merged"):
            a.merge(b)


def test_proposal_recall():
    state, other = ProposalRecall(2), ProposalRecall(2)
    state.update(np.array([BOX, FAR]), np.array([FAR, (50, 50, 59, 59), BOX]))  # BOX comes third
    other.update(np.array([BOX]), np.array([HALF]))
    other.update(np.array([BOX]), np.zeros((0, 4)))
    state.merge(other)
    assert state.compute() == {"rpn_recall@2": 0.5, "annotated_objects": 4}


def brute_force_ap(gt, detections, threshold=0.5):
    """One class, straight from the definition: (image, box) and (image, score, box) lists."""
    free, outcomes = set(range(len(gt))), []
    for image, _, box in sorted(detections, key=lambda d: -d[1]):
        ious = [metrics.overlaps([box], [b])[0, 0] if i == image else -1.0 for i, b in gt]
        best = int(np.argmax(ious))
        outcomes.append(ious[best] > threshold and best in free)
        if outcomes[-1]:
            free.discard(best)
    area, previous = 0.0, 0.0
    for n in range(1, len(outcomes) + 1):
        recall = sum(outcomes[:n]) / len(gt)
        best = max(sum(outcomes[:k]) / k for k in range(n, len(outcomes) + 1))
        area += (recall - previous) * best
        previous = recall
    return area


def random_detections(rng, images=6, classes=3):
    """Per image: annotated boxes and classes, detected boxes, scores and classes."""
    for _ in range(images):
        gt = rng.integers(0, 20, (rng.integers(1, 5), 2)).astype(float)
        gt_boxes = np.concatenate([gt, gt + rng.integers(4, 12, gt.shape)], axis=1)
        source = rng.integers(len(gt_boxes), size=9)
        boxes = gt_boxes[source] + rng.integers(-2, 3, (9, 4))
        labels = rng.integers(1, classes + 1, len(gt_boxes))
        detected = np.where(rng.random(9) < 0.8, labels[source], rng.integers(1, classes + 1, 9))
        yield gt_boxes, labels, boxes, rng.permutation(1000)[:9] / 1000, detected


def test_average_precision_against_the_definition():
    rng = np.random.default_rng(0)
    images = list(random_detections(rng))
    whole, left, right = DetectionAP(5), DetectionAP(5), DetectionAP(5)
    for index, image in enumerate(images):
        whole.update(*image)
        (left if index % 2 else right).update(*image)
    areas = []
    for label in (1, 2, 3):
        gt = [(i, b) for i, (boxes, c, *_) in enumerate(images) for b in boxes[c == label]]
        detections = [
            (i, s, b)
            for i, (_, _, boxes, scores, c) in enumerate(images)
            for s, b in zip(scores[c == label], boxes[c == label], strict=True)
        ]
        areas.append(whole.curve(label).area())
        assert areas[-1] == pytest.approx(brute_force_ap(gt, detections))
    assert 0.1 < np.mean(areas) < 0.95
    # Class 4 is never annotated, so it is no part of the mean.
    assert whole.compute() == {"mAP": pytest.approx(np.mean(areas)), "annotated_classes": 3}
    left.merge(right)
    assert left.compute() == {"mAP": pytest.approx(np.mean(areas)), "annotated_classes": 3}


def test_overlap_of_exactly_one_half_is_no_detection():
    ap = DetectionAP(2)
    ap.update([BOX], [1], np.array([HALF]), [0.9], [1])
    assert ap.compute()["mAP"] == 0.0


def test_difficult_objects_count_neither_way():
    ap = DetectionAP(2)
    boxes = np.array([FAR, FAR, BOX, BOX])
    ap.update([BOX, FAR], [1, 1], boxes, [0.9, 0.8, 0.7, 0.6], [1] * 4, np.array([False, True]))
    curve = ap.curve(1)
    np.testing.assert_array_equal(curve.recall, [0, 0, 1, 1])
    np.testing.assert_array_equal(curve.precision, [0, 0, 1, 0.5])
    assert curve.area() == 1.0


def test_detections_of_other_images_do_not_match():
    ap = DetectionAP(2)
    ap.update([BOX], [1], np.zeros((0, 4)), [], [])
    ap.update([FAR], [1], np.array([BOX]), [0.9], [1])
    assert ap.compute() == {"mAP": 0.0, "annotated_classes": 1}
