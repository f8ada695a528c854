"""The standard protocol: worked cases, its definitions spelled out slowly, and another package."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fnet_jax.metrics import RankedPairs, SGBRecall, TrainingStatistics
from fnet_jax.metrics.sgb import one_per_pair
from fnet_jax.predictions import Prediction
from fnet_jax.protocols import Scores

FAR = (100, 100, 109, 109)
BOX = (0, 0, 9, 9)
HALF = (0, 0, 9, 4)  # IoU exactly 1/2 with BOX, with inclusive pixels only
NEAR = (0, 0, 9, 8)  # IoU 0.9 with BOX
UNRELATED = TrainingStatistics((0, 1, 1), {(9, 1, 9)})


def record(boxes, classes, relationships):
    return {
        "boxes": np.array(boxes, np.float64).reshape(-1, 4),
        "classes": np.array(classes, np.int64),
        "relationships": np.array(relationships, np.int64).reshape(-1, 3),
    }


def prediction(boxes, classes, triplets):
    return Prediction(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        classes=np.array(classes, np.int64),
        scores=np.ones(len(classes), np.float32),
        triplets=np.array(triplets, np.int64).reshape(-1, 3),
        triplet_scores=np.ones(len(triplets), np.float32),
        rankings={},
    )


# Annotation, prediction, R@K of SGB and of sgbench, F-Net's hits and annotated relationships.
TWO = ([BOX, FAR], [1, 2])
CASES = {
    "A": ((*TWO, [(0, 1, 1)]), ([HALF, FAR], [1, 2], [(0, 1, 1)]), 1.0, 0.0, (1, 1)),
    "B": (
        ([BOX, NEAR, FAR], [1, 1, 2], [(0, 2, 1), (1, 2, 1)]),
        ([BOX, FAR], [1, 2], [(0, 1, 1)]),
        1.0,
        0.5,
        (2, 2),
    ),
    "C": ((*TWO, [(0, 1, 1), (0, 1, 2)]), (*TWO, [(0, 1, 1)]), 0.5, 0.5, (0, 1)),
    "D": ((*TWO, [(0, 1, 1), (0, 1, 2)]), (*TWO, [(0, 1, 2)]), 0.5, 0.5, (1, 1)),
    "E": ((*TWO, [(0, 1, 1), (0, 1, 1), (1, 0, 1)]), (*TWO, [(0, 1, 1)]), 2 / 3, 0.5, (1, 2)),
    "F": ((*TWO, [(0, 1, 1)]), ([BOX, FAR], [3, 2], [(0, 1, 1)]), 0.0, 0.0, (0, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_worked_cases_in_both_protocols(case):
    annotated, found, expected, _, (hits, count) = CASES[case]
    scores = Scores(("fnet", "sgb"), 3, UNRELATED)
    scores.update(record(*annotated), prediction(*found))
    values = scores.compute()
    for name in ("R", "ngR", "zR"):
        assert [values[f"sgb_{name}@{k}"] for k in (20, 50, 100)] == pytest.approx([expected] * 3)
    fnet = scores.states["fnet"]
    assert (fnet.hits["relationship"].tolist(), fnet.annotated) == ([hits, hits], count)
    assert values["relationship_recall@50"] == hits / count
    assert values["sgb_annotated_relationships"] == len(annotated[2])


def test_case_f_only_fnet_has_a_predicate_recall():
    annotated, found, *_ = CASES["F"]
    scores = Scores(("fnet", "sgb"), 3, UNRELATED)
    scores.update(record(*annotated), prediction(*found))
    fnet = scores.states["fnet"]
    assert (fnet.hits["predicate"][0], fnet.hits["phrase"][0]) == (1, 0)


def only(state: SGBRecall, annotated, boxes, classes, constrained, unconstrained=None) -> dict:
    """Metrics of one image."""
    lists = constrained, constrained if unconstrained is None else unconstrained
    lists = [np.array(rows, np.int64).reshape(-1, 3) for rows in lists]
    state.update(*annotated, RankedPairs(np.array(boxes), np.array(classes), *lists))
    return state.compute()


def test_mean_recall_over_images_then_predicates():
    """Predicate 1: 1/2 and 1/1 of two images; 2: 0/1 of one; 3 never occurs and counts 0."""
    state = SGBRecall(4, TrainingStatistics((0, 3, 2, 1), []), top_ks=(5,))
    only(state, (*TWO, [(0, 1, 1), (1, 0, 1)]), *TWO, [(0, 1, 1)])
    values = only(state, (*TWO, [(0, 1, 1), (1, 0, 2)]), *TWO, [(0, 1, 1)])
    assert values["mR@5"] == pytest.approx((0.75 + 0 + 0) / 3)
    assert values["R@5"] == 0.5
    assert (values["mR@5_head"], values["mR@5_body"], values["mR@5_tail"]) == (0.75, 0, 0)
    assert state.predicate_images.tolist() == [0, 2, 1, 0]
    assert state.predicate_annotated.tolist() == [0, 3, 1, 0]


def test_images_without_annotation_or_prediction_are_left_out():
    state = SGBRecall(3, UNRELATED, "predcls", top_ks=(1,))
    values = only(state, (*TWO, [(0, 1, 1), (1, 0, 1)]), *TWO, [(0, 1, 1)])
    for annotated, found in (([], [(0, 1, 1)]), ([(0, 1, 1)], []), ([], [])):
        relationships = np.array(annotated, np.int64).reshape(-1, 3)
        assert only(state, (*TWO, relationships), *TWO, found) == values
    only(state, (np.zeros((0, 4)), [], np.zeros((0, 3))), np.zeros((0, 4)), [], [])
    assert state.compute() == values
    assert values["R@1"] == values["A@1"] == 0.5 and values["images"] == 1


def test_nothing_at_all_is_zero():
    values = SGBRecall(3, UNRELATED, "predcls").compute()
    assert set(values.values()) == {0}
    assert {"R@20", "ngR@50", "mR@100", "zR@20", "A@20", "mR@50_tail"} < set(values)


def test_pair_accuracy_ranks_annotated_pairs_only():
    annotated = (*TWO, [(1, 0, 1)])
    found = [(0, 1, 1), (1, 0, 1)]
    values = only(SGBRecall(3, UNRELATED, "sgcls", top_ks=(1,)), annotated, *TWO, found)
    assert (values["R@1"], values["A@1"]) == (0.0, 1.0)
    assert "A@1" not in only(SGBRecall(3, UNRELATED, top_ks=(1,)), annotated, *TWO, found)


def test_zero_shot_is_a_combination_not_seen_in_training():
    training = TrainingStatistics((0, 1, 1), [(1, 1, 2)])
    annotated = (*TWO, [(0, 1, 1), (0, 1, 2), (1, 0, 1)])
    state = SGBRecall(3, training, top_ks=(5,))
    values = only(state, annotated, *TWO, [(1, 0, 1)])
    assert (values["zR@5"], values["R@5"]) == (0.5, pytest.approx(1 / 3))
    only(state, (*TWO, [(0, 1, 1)]), *TWO, [(1, 0, 1)])
    assert state.compute()["zero_shot_images"] == 1


@pytest.mark.parametrize("missing", ["constrained", "unconstrained"])
def test_one_empty_ranking_does_not_leave_an_image_out(missing):
    lists = {"constrained": [(0, 1, 1)], "unconstrained": [(0, 1, 1)], missing: []}
    state = SGBRecall(3, UNRELATED, top_ks=(1,))
    values = only(state, (*TWO, [(0, 1, 1)]), *TWO, **lists)
    expected = (missing != "constrained", missing != "unconstrained")
    assert (values["R@1"], values["ngR@1"]) == expected
    assert values["images"] == 1


@pytest.mark.parametrize(("count", "sizes"), [(50, (16, 17, 17)), (2, (0, 1, 1)), (9, (3, 3, 3))])
def test_head_body_and_tail(count, sizes):
    frequencies = np.random.default_rng(count).integers(0, 7, count)
    groups = TrainingStatistics((1000, *frequencies), []).tertiles()
    assert tuple(len(groups[name]) for name in ("head", "body", "tail")) == sizes
    order = np.concatenate(list(groups.values()))
    assert sorted(order) == list(range(1, count + 1))
    falling = [(-frequencies[index - 1], index) for index in order]
    assert falling == sorted(falling)


def test_states_of_other_arguments_cannot_be_merged():
    state = SGBRecall(3, UNRELATED)
    for other in (
        SGBRecall(4, UNRELATED),
        SGBRecall(3, TrainingStatistics((0, 1, 1), {(9, 2, 9)})),
        SGBRecall(3, UNRELATED, "predcls"),
        SGBRecall(3, UNRELATED, top_ks=(20,)),
        SGBRecall(3, UNRELATED, iou_threshold=0.6),
    ):
        with pytest.raises(ValueError, match="can be merged"):
            state.merge(other)
    with pytest.raises(ValueError, match="predcl"):
        SGBRecall(3, UNRELATED, "predcl")


# The definitions, spelled out.

TOP_KS = (1, 2, 3, 6)
NUM_CLASSES, NUM_PREDICATES = 2, 3  # without background
BOXES = (BOX, HALF, NEAR, (0, 0, 9, 3), (2, 2, 11, 11), (40, 0, 49, 9), (41, 1, 50, 10), FAR)


def slow_iou(a, b):
    def area(box):
        return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)

    common = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return common / (area(a) + area(b) - common)


def slow_one_per_pair(triplets):
    kept = []
    for s, o, p in triplets:
        if not any((s, o) == (t[0], t[1]) for t in kept):
            kept.append((s, o, p))
    return kept


def slow_found(image, triplets):
    """Positions of the annotations that some triplet matches."""
    found = set()
    for position, (gs, go, gp) in enumerate(image["relationships"]):
        for s, o, p in triplets:
            labels = (image["gt_classes"][gs], gp, image["gt_classes"][go])
            boxes = (
                slow_iou(image["gt_boxes"][gs], image["boxes"][s]),
                slow_iou(image["gt_boxes"][go], image["boxes"][o]),
            )
            if labels == (image["classes"][s], p, image["classes"][o]) and min(boxes) >= 0.5:
                found.add(position)
    return found


def average(values):
    return sum(values) / len(values) if values else 0.0


def slow_metrics(images, seen, task):
    """R, ngR, mR, zR and A at all K, and the recall of each predicate."""
    images = [image for image in images if image["relationships"] and image["triplets"]]
    result, per_predicate = {}, {}
    for k in TOP_KS:
        recalls, free, zero_shot = [], [], []
        of_predicate = {p: [] for p in range(1, NUM_PREDICATES + 1)}
        pair_hits = annotated = 0
        for image in images:
            rows, labels = image["relationships"], image["gt_classes"]
            constrained = slow_one_per_pair(image["triplets"])
            found = slow_found(image, constrained[:k])
            recalls.append(len(found) / len(rows))
            free.append(len(slow_found(image, image["triplets"][:k])) / len(rows))
            for predicate, values in of_predicate.items():
                these = [i for i, row in enumerate(rows) if row[2] == predicate]
                if these:
                    values.append(len(found.intersection(these)) / len(these))
            unseen = [
                i for i, (s, o, p) in enumerate(rows) if (labels[s], p, labels[o]) not in seen
            ]
            if unseen:
                zero_shot.append(len(found.intersection(unseen)) / len(unseen))
            pairs = [(s, o) for s, o, _ in rows]
            on_pairs = [row for row in constrained if (row[0], row[1]) in pairs]
            pair_hits += len(slow_found(image, on_pairs[:k]))
            annotated += len(rows)
        result[f"R@{k}"] = average(recalls)
        result[f"ngR@{k}"] = average(free)
        result[f"zR@{k}"] = average(zero_shot)
        result[f"mR@{k}"] = average([average(values) for values in of_predicate.values()])
        if task != "sgdet":
            result[f"A@{k}"] = pair_hits / annotated if annotated else 0.0
        per_predicate[k] = [average(values) for values in of_predicate.values()]
    return result, per_predicate


def rows_among(count, most):
    if not count:
        return st.just([])
    place = st.integers(0, count - 1)
    return st.lists(st.tuples(place, place, st.integers(1, NUM_PREDICATES)), max_size=most)


@st.composite
def sgb_images(draw, task):
    """Repeated annotations, several predicates on a pair, and empty lists included."""
    objects = st.tuples(st.sampled_from(BOXES), st.integers(1, NUM_CLASSES))
    annotated = draw(st.lists(objects, max_size=4))
    detected = annotated if task != "sgdet" else draw(st.lists(objects, max_size=5))
    if task == "sgcls":
        detected = [(box, draw(st.integers(1, NUM_CLASSES))) for box, _ in annotated]
    relationships = draw(rows_among(len(annotated), 5))
    if relationships and draw(st.booleans()):
        relationships.append(draw(st.sampled_from(relationships)))
    triplets = draw(rows_among(len(detected), 10))
    # Half of the time the annotations are among them, so that something is found.
    if task != "sgdet" and draw(st.booleans()):
        triplets = draw(st.permutations(triplets + relationships))
    return {
        "gt_boxes": [box for box, _ in annotated],
        "gt_classes": [label for _, label in annotated],
        "relationships": relationships,
        "boxes": [box for box, _ in detected],
        "classes": [label for _, label in detected],
        "triplets": list(triplets),
    }


def add(state, image):
    triplets = np.array(image["triplets"], np.int64).reshape(-1, 3)
    state.update(
        np.array(image["gt_boxes"]).reshape(-1, 4),
        np.array(image["gt_classes"], np.int64),
        np.array(image["relationships"], np.int64).reshape(-1, 3),
        RankedPairs(
            np.array(image["boxes"]).reshape(-1, 4),
            np.array(image["classes"], np.int64),
            one_per_pair(triplets),
            triplets,
        ),
    )


seen_triplets = st.sets(
    st.tuples(
        st.integers(1, NUM_CLASSES), st.integers(1, NUM_PREDICATES), st.integers(1, NUM_CLASSES)
    ),
    max_size=8,
)


@pytest.mark.parametrize("task", ["sgdet", "sgcls", "predcls"])
@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(data=st.data(), seen=seen_triplets)
def test_definitions(task, data, seen):
    images = data.draw(st.lists(sgb_images(task), max_size=4))
    training = TrainingStatistics((0, 5, 3, 4), seen)

    def fresh():
        return SGBRecall(NUM_PREDICATES + 1, training, task, TOP_KS)

    whole, left, right = fresh(), fresh(), fresh()
    for index, image in enumerate(images):
        add(whole, image)
        add((left, right)[index % 2], image)
    values = whole.compute()
    expected, per_predicate = slow_metrics(images, seen, task)
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert ("A@1" in values) == (task != "sgdet")
    for column, k in enumerate(TOP_KS):
        np.testing.assert_allclose(whole.per_predicate()[1:, column], per_predicate[k])
        # By frequency in training the order is 1, 3, 2.
        thirds = [values[f"mR@{k}_{name}"] for name in ("head", "body", "tail")]
        np.testing.assert_allclose(thirds, np.array(per_predicate[k])[[0, 2, 1]])
    left.merge(right)
    assert left.compute() == pytest.approx(values)
    np.testing.assert_allclose(left.per_predicate(), whole.per_predicate())
    np.testing.assert_array_equal(left.predicate_annotated, whole.predicate_annotated)


# The package, where its definitions coincide. It asks for NumPy 1, so that it cannot be among the
# test dependencies; it works with NumPy 2: pip install --no-deps sgbench==1.0.0


@pytest.fixture
def sgbench():
    return pytest.importorskip("sgbench", reason="pip install --no-deps sgbench==1.0.0")


def matched(sgbench, annotated, found):
    """Unique annotated and matched triplets as the package wants them: predicates from 0."""
    boxes, classes, rows = (np.array(part) for part in annotated)
    mapping = sgbench.match_instances(boxes, classes, np.array(found[0]), np.array(found[1]))
    triplets = np.array(found[2]).reshape(-1, 3) - [0, 0, 1]
    return np.unique(rows - [0, 0, 1], axis=0), sgbench.remap_triplets(mapping, triplets)


@pytest.mark.parametrize("case", CASES)
def test_worked_cases_in_the_package(sgbench, case):
    annotated, found, _, expected, _ = CASES[case]
    gt, remapped = matched(sgbench, annotated, found)
    assert sgbench.recall(20, False, gt, remapped, 2) == pytest.approx(expected)


def separated_image(rng):
    """Boxes far from each other; detections almost on them or far away; no repeated annotation."""
    count = int(rng.integers(2, 7))
    corners = 200 * np.stack(np.divmod(rng.permutation(16)[:count], 4), axis=1)
    boxes = np.concatenate([corners, corners + rng.integers(60, 100, (count, 2))], axis=1)
    classes = rng.integers(1, 4, count)
    pairs = list(itertools.permutations(range(count), 2))
    every = [(s, o, p) for s, o in pairs for p in range(1, 8)]
    rows = [every[i] for i in rng.permutation(len(every))[: rng.integers(1, 12)]]
    source = rng.integers(count, size=count + 4)
    shift = np.where(rng.random((len(source), 1)) < 0.8, rng.integers(-5, 6, (len(source), 4)), 900)
    labels = np.where(rng.random(len(source)) < 0.8, classes[source], rng.integers(1, 4))
    # Likely triplets first, then noise.
    found = [
        (i, j, int(p) if rng.random() < 0.7 else int(rng.integers(1, 8)))
        for s, o, p in rows
        for i in np.flatnonzero(source == s)
        for j in np.flatnonzero(source == o)
    ]
    noise = [
        (*rng.permutation(len(source))[:2].tolist(), int(rng.integers(1, 8))) for _ in range(60)
    ]
    triplets = [found[i] for i in rng.permutation(len(found))] + noise
    return (boxes, classes, rows), (boxes[source] + shift, labels, triplets)


@pytest.mark.parametrize("seed", range(4))
def test_agreement_with_the_package(sgbench, seed):
    rng = np.random.default_rng(seed)
    state = SGBRecall(8, TrainingStatistics((0, *range(7)), []), top_ks=(3, 20, 50))
    kinds = {(name, k): [] for name in ("R", "ngR") for k in state.top_ks}
    per_predicate = {k: [] for k in state.top_ks}
    for _ in range(40):
        annotated, (boxes, classes, triplets) = separated_image(rng)
        lists = one_per_pair(np.array(triplets)), np.array(triplets)
        state.update(*annotated, RankedPairs(boxes, classes, *lists))
        for name, rows in zip(("R", "ngR"), lists, strict=True):
            gt, remapped = matched(sgbench, annotated, (boxes, classes, rows))
            for k in state.top_ks:
                kinds[name, k].append(sgbench.recall(k, False, gt, remapped, 7))
                if name == "R":
                    per_predicate[k].append(sgbench.recall(k, True, gt, remapped, 7))
    values = state.compute()
    for (name, k), recalls in kinds.items():
        assert values[f"{name}@{k}"] == pytest.approx(np.mean(recalls))
    assert 0.1 < values["R@3"] < values["R@20"] < values["ngR@50"] < 1.0
    for column, k in enumerate(state.top_ks):
        means = np.nanmean(per_predicate[k], axis=0)
        np.testing.assert_allclose(state.per_predicate()[1:, column], means)
        assert values[f"mR@{k}"] == pytest.approx(means.mean())
