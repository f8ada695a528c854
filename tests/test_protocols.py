"""What each protocol looks at in a prediction, and what perfect predictions score."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fnet_jax import protocols
from fnet_jax.errors import UserError
from fnet_jax.metrics import TASKS, TrainingStatistics
from fnet_jax.predictions import Prediction, from_annotation
from fnet_jax.protocols import Scores, check_protocols, task_of

NUM_PREDICATES = 13  # with background
TRAINING = TrainingStatistics(tuple(range(NUM_PREDICATES)), [(8, 1, 8)])
BOTH = ("fnet", "sgb")
BOX, NEAR, FAR = (0, 0, 9, 9), (0, 0, 9, 7), (100, 100, 109, 109)  # BOX and NEAR: IoU 0.8


def record(boxes, classes, relationships):
    return {
        "boxes": np.array(boxes, np.float64).reshape(-1, 4),
        "classes": np.array(classes, np.int64),
        "relationships": np.array(relationships, np.int64).reshape(-1, 3),
    }


def prediction(boxes, classes, triplets, **rankings):
    return Prediction(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        classes=np.array(classes, np.int64),
        scores=np.ones(len(classes), np.float32),
        triplets=np.array(triplets, np.int64).reshape(-1, 3),
        triplet_scores=np.ones(len(triplets), np.float32),
        rankings={name: np.array(rank, np.int64) for name, rank in rankings.items()},
    )


class Spy:
    """Stands for a metric's state and keeps what it is given."""

    top_ns = (50, 100)

    def update(self, boxes, classes, relationships, given):
        self.given = given


def looked_at(name, predicted, task="sgdet", annotated=None):
    """The rows (subject, object, predicate) that a protocol's metric is given.

    For SGB a pair of them: one for a pair of objects, and all.
    """
    scores, spy = Scores((name,), NUM_PREDICATES, TRAINING, task), Spy()
    scores.states[name] = spy
    scores.update(annotated or record([], [], []), predicted)
    if name == "sgb":
        return spy.given.constrained.tolist(), spy.given.unconstrained.tolist()
    index = {tuple(box): i for i, box in enumerate(predicted.boxes.tolist())}
    subjects, objects = (
        [index[tuple(box)] for box in boxes.tolist()]
        for boxes in (spy.given.subject_boxes, spy.given.object_boxes)
    )
    np.testing.assert_array_equal(spy.given.subject_classes, predicted.classes[subjects])
    np.testing.assert_array_equal(spy.given.object_classes, predicted.classes[objects])
    columns = subjects, objects, spy.given.predicates.tolist()
    return [list(row) for row in zip(*columns, strict=True)]


# F-Net's choice from a list of other origin.


def test_ten_predicates_of_an_ordered_pair():
    triplets = [(0, 1, p) for p in range(12, 0, -1)] + [(1, 0, p) for p in range(1, 13)]
    mixed = [triplets[i] for i in np.random.default_rng(0).permutation(24)]
    for task in TASKS:
        annotated = record([BOX, FAR], [1, 2], [])
        rows = looked_at("fnet", prediction([BOX, FAR], [1, 2], mixed), task, annotated)
        expected, used = [], collections.Counter()
        for row in mixed:
            used[row[:2]] += 1
            if used[row[:2]] <= 10:
                expected.append(list(row))
        assert rows == expected and len(rows) == 20


ALIKE = prediction([BOX, NEAR, FAR], [1, 1, 2], [(0, 2, 1), (1, 2, 1), (1, 2, 2), (2, 1, 1)])


def test_triplet_nms_of_a_foreign_list():
    assert looked_at("fnet", ALIKE) == [[0, 2, 1], [1, 2, 2], [2, 1, 1]]
    other_class = prediction(ALIKE.boxes, [1, 3, 2], ALIKE.triplets)
    assert len(looked_at("fnet", other_class)) == 4


@pytest.mark.parametrize(("height", "kept"), [(4, 2), (4.1, 1)])
def test_triplet_nms_removes_above_an_overlap_of_two_fifths(height, kept):
    """(0, 0, 9, y) overlaps BOX by (y + 1) / 10."""
    boxes = [BOX, (0, 0, 9, height - 1), FAR]
    assert len(looked_at("fnet", prediction(boxes, [1, 1, 2], [(0, 2, 1), (1, 2, 1)]))) == kept


@pytest.mark.parametrize("task", ["sgcls", "predcls"])
def test_no_triplet_nms_among_given_boxes(task):
    annotated = record(ALIKE.boxes, ALIKE.classes, [])
    assert looked_at("fnet", ALIKE, task, annotated) == ALIKE.triplets.tolist()


def test_no_choice_from_what_is_ranked_for_fnet():
    many = [(0, 1, p) for p in range(1, 13)]
    ranked = prediction([BOX, FAR], [1, 2], many, fnet=range(12))
    assert looked_at("fnet", ranked) == [list(row) for row in many]
    alike = prediction(ALIKE.boxes, ALIKE.classes, ALIKE.triplets, fnet=[1, 0])
    assert looked_at("fnet", alike) == [[1, 2, 1], [0, 2, 1]]


def test_rankings_select():
    triplets = [(0, 1, 1), (0, 1, 2), (1, 0, 3), (1, 0, 4)]
    ranked = prediction(
        [BOX, FAR], [1, 2], triplets, fnet=[3], sgb=[2, 1], sgb_unconstrained=[1, 0, 3, 2]
    )
    assert looked_at("fnet", ranked) == [[1, 0, 4]]
    constrained, unconstrained = looked_at("sgb", ranked)
    assert constrained == [[1, 0, 3], [0, 1, 2]]
    assert unconstrained == [[0, 1, 2], [0, 1, 1], [1, 0, 4], [1, 0, 3]]


@pytest.mark.parametrize("rankings", [{}, {"fnet": [1]}, {"sgb": [0, 1, 2]}], ids=str)
def test_sgb_takes_the_first_predicate_of_a_pair(rankings):
    """Whatever a file of another program ranks: R must not become ngR."""
    triplets = [(0, 1, 2), (0, 1, 1), (1, 0, 3)]
    predicted = prediction([BOX, FAR], [1, 2], triplets, **rankings)
    constrained, unconstrained = looked_at("sgb", predicted)
    assert constrained == [[0, 1, 2], [1, 0, 3]]
    assert unconstrained == [list(row) for row in triplets]


def test_sgb_reads_r_off_the_unconstrained_ranking():
    predicted = prediction(
        [BOX, FAR], [1, 2], [(0, 1, 1), (0, 1, 2)], fnet=[0], sgb_unconstrained=[1, 0]
    )
    assert looked_at("sgb", predicted) == ([[0, 1, 2]], [[0, 1, 2], [0, 1, 1]])


def test_sgb_applies_no_nms():
    assert looked_at("sgb", ALIKE)[1] == ALIKE.triplets.tolist()


def test_an_empty_prediction():
    for name in BOTH:
        assert not any(looked_at(name, prediction([], [], [])))


CORNERS = st.tuples(*[st.integers(0, 12)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@st.composite
def foreign(draw, most=300):
    """Crowded boxes, few classes, and a long list of triplets with repetitions."""
    boxes = draw(st.lists(CORNERS, min_size=1, max_size=6, unique=True))
    count = len(boxes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    triplets = rng.integers((0, 0, 1), (count, count, 13), (draw(st.integers(0, most)), 3))
    return prediction(boxes, rng.integers(1, 3, count), triplets)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(foreign())
def test_choosing_again_changes_nothing(predicted):
    chosen = looked_at("fnet", predicted)
    assert len(chosen) <= 100
    again = prediction(predicted.boxes, predicted.classes, chosen)
    assert looked_at("fnet", again) == chosen
    ranked = prediction(predicted.boxes, predicted.classes, chosen, fnet=range(len(chosen)))
    assert looked_at("fnet", ranked) == chosen
    one, every = looked_at("sgb", predicted)
    assert looked_at("sgb", prediction(predicted.boxes, predicted.classes, one)) == (one, one)
    assert every == predicted.triplets.tolist()


def slow_choice(predicted):
    """Ten of a pair, then triplet NMS, spelled out."""

    def iou(a, b):
        def area(x1, y1, x2, y2):
            return max(x2 - x1 + 1, 0) * max(y2 - y1 + 1, 0)

        common = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
        return common / (area(*a) + area(*b) - common)

    boxes, classes = predicted.boxes.tolist(), predicted.classes.tolist()
    used, kept = collections.Counter(), []
    for s, o, p in predicted.triplets.tolist():
        used[s, o] += 1
        if used[s, o] > 10:
            continue
        removed = any(
            (classes[s], p, classes[o]) == (classes[ks], kp, classes[ko])
            and iou(boxes[s], boxes[ks]) > 0.4
            and iou(boxes[o], boxes[ko]) > 0.4
            for ks, ko, kp in kept
        )
        if not removed:
            kept.append([s, o, p])
    return kept[:100]


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(foreign())
def test_choice_against_the_definition(predicted):
    assert looked_at("fnet", predicted) == slow_choice(predicted)


# Annotations as predictions.


def scored(task, *records):
    scores = Scores(BOTH, NUM_PREDICATES, TRAINING, task)
    for annotated in records:
        scores.update(annotated, from_annotation(annotated))
    return scores.compute()


@st.composite
def annotations(draw):
    """Separate objects, one predicate on a pair, at most 20 pairs."""
    count = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    corners = 50.0 * np.stack([np.arange(count), rng.integers(0, 9, count)], axis=1)
    boxes = np.concatenate([corners, corners + rng.uniform(0, 30, (count, 2))], axis=1)
    pairs = [(s, o) for s in range(count) for o in range(count) if s != o]
    chosen = rng.permutation(len(pairs))[:20]
    rows = [(*pairs[i], rng.integers(1, NUM_PREDICATES)) for i in chosen]
    return record(boxes, rng.integers(1, 9, count), rows)


@pytest.mark.parametrize("task", TASKS)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(images=st.lists(annotations(), min_size=1, max_size=3))
def test_annotations_are_perfect_predictions(task, images):
    values = scored(task, *images)
    rows = [row for image in images for row in image["relationships"]]
    perfect = 1.0 if rows else 0.0
    for kind in ("relationship", "phrase", "predicate"):
        for n in (50, 100):
            assert values[f"{kind}_recall@{n}"] == perfect
    occurring = {row[2] for row in rows}
    for k in (20, 50, 100):
        assert values[f"sgb_R@{k}"] == values[f"sgb_ngR@{k}"] == pytest.approx(perfect)
        if task != "sgdet":
            assert values[f"sgb_A@{k}"] == perfect
        # Predicates that never occur count 0.
        assert values[f"sgb_mR@{k}"] == pytest.approx(len(occurring) / 12)
        has_zero_shot = values["sgb_zero_shot_images"] > 0
        assert values[f"sgb_zR@{k}"] == pytest.approx(1.0 if has_zero_shot else 0.0)
    assert all(f"sgb_{name}@20" in values for name in ("R", "ngR", "mR", "zR"))
    assert ("sgb_A@20" in values) == (task != "sgdet")


@pytest.mark.parametrize("task", TASKS)
def test_several_predicates_on_a_pair_are_beyond_r_but_not_ngr(task):
    values = scored(task, record([BOX, FAR], [1, 2], [(0, 1, 1), (0, 1, 2)]))
    assert (values["sgb_R@20"], values["sgb_ngR@20"]) == (0.5, 1.0)
    assert values["sgb_zR@20"] == 0.5
    assert values["sgb_mR@20"] == pytest.approx(1 / 12)
    assert values["sgb_annotated_relationships"] == 2
    if task != "sgdet":
        assert values["sgb_A@20"] == 0.5
    # F-Net asks for the last one only, and both are predicted.
    assert values["relationship_recall@50"] == 1.0
    assert values["annotated_relationships"] == 1


@pytest.mark.parametrize("task", TASKS)
def test_fnet_misses_the_last_annotation_of_a_pair_beyond_ten(task):
    rows = [(0, 1, p) for p in range(1, 13)]
    values = scored(task, record([BOX, FAR], [1, 2], rows))
    assert values["relationship_recall@100"] == 0.0
    assert values["sgb_ngR@20"] == 1.0


def test_repeated_annotations_take_a_place_each_but_are_all_found():
    values = scored("sgdet", record([BOX, FAR], [1, 2], [(0, 1, 1)] * 3 + [(1, 0, 1)]))
    assert values["sgb_R@20"] == values["sgb_ngR@20"] == 1.0
    assert (values["sgb_annotated_relationships"], values["annotated_relationships"]) == (4, 2)


def test_more_annotations_than_places():
    boxes = [(20 * i, 0, 20 * i + 9, 9) for i in range(6)]
    rows = [(s, o, 1) for s in range(6) for o in range(6) if s != o]
    values = scored("predcls", record(boxes, range(1, 7), rows))
    assert values["sgb_R@20"] == values["sgb_A@20"] == pytest.approx(20 / 30)
    assert values["sgb_R@50"] == values["relationship_recall@50"] == 1.0


def test_triplet_nms_may_cost_fnet_an_annotation():
    """Two annotations of IoU 0.42: too close for the NMS, too far for one to find the other."""
    boxes = [BOX, (0, 0, 9, 3.2), FAR]
    annotated = record(boxes, [1, 1, 2], [(0, 2, 1), (1, 2, 1)])
    values = scored("sgdet", annotated)
    assert (values["relationship_recall@50"], values["sgb_R@20"]) == (0.5, 1.0)
    assert scored("predcls", annotated)["relationship_recall@50"] == 1.0


def test_both_protocols_count_self_relations_as_annotated():
    values = scored("sgdet", record([BOX], [1], [(0, 0, 1)]))
    assert values["relationship_recall@50"] == values["sgb_R@20"] == 1.0


# Given boxes.

GIVEN = record([BOX, FAR, NEAR], [1, 2, 3], [(0, 1, 1)])


def given(boxes, classes, triplets=((0, 1, 1),), task="sgcls", annotated=GIVEN):
    scores = Scores(BOTH, NUM_PREDICATES, TRAINING, task)
    scores.update(annotated, prediction(boxes, classes, triplets))
    return scores.compute()


@pytest.mark.parametrize("task", ["sgcls", "predcls"])
@pytest.mark.parametrize(
    ("boxes", "triplets"),
    [
        ([FAR, BOX, NEAR], [(0, 1, 1)]),  # another order
        ([BOX, (100, 100, 109, 120), NEAR], [(0, 1, 1)]),  # another box
        ([BOX, FAR, NEAR, FAR], [(0, 3, 1)]),  # one too many
        ([BOX, FAR, NEAR, FAR], [(0, 1, 1), (3, 0, 1)]),
    ],
)
def test_objects_that_were_not_given(task, boxes, triplets):
    classes = [1, 2, 3, 2][: len(boxes)]
    with pytest.raises(UserError, match=f"task {task} gives the 3 annotated") as error:
        given(boxes, classes, triplets, task)
    assert "\n" not in str(error.value)
    given(boxes, classes, triplets, "sgdet")


def test_nothing_was_given():
    with pytest.raises(UserError, match="gives the 0 annotated"):
        given([BOX, FAR], [1, 2], annotated=record([], [], []))


@pytest.mark.parametrize("task", ["sgcls", "predcls"])
def test_objects_without_relationship_may_be_anything(task):
    boxes = [BOX, FAR, (3, 3, 4, 4), (5, 5, 6, 6)]
    assert given(boxes, [1, 2, 9, 9], task=task)["sgb_R@20"] == 1.0
    assert given([], [], [], task)["relationship_recall@50"] == 0.0


def test_given_boxes_may_be_rounded():
    assert given([(0.4, 0, 9, 9.6), FAR], [1, 2])["sgb_R@20"] == 1.0


def test_classes_are_given_in_predcls_only():
    assert given([BOX, FAR], [1, 5])["sgb_R@20"] == 0.0
    with pytest.raises(UserError, match="boxes and classes"):
        given([BOX, FAR], [1, 5], task="predcls")


# Names and sums.


def test_tasks():
    names = [task_of(*flags) for flags in ((False, False), (True, False), (True, True))]
    assert names == list(TASKS)
    with pytest.raises(UserError, match="use_gt_boxes=True"):
        task_of(False, True)


def test_names_of_protocols():
    assert check_protocols(["sgb", "fnet"]) == ("sgb", "fnet")
    with pytest.raises(UserError, match="coco is unknown; choose from fnet, sgb"):
        check_protocols(["fnet", "coco"])
    with pytest.raises(UserError, match="none is named"):
        check_protocols([])
    assert set(protocols.RULES) == set(protocols.PROTOCOLS)


def test_protocols_that_were_not_asked_for_are_not_reported():
    annotated = record([BOX, FAR], [1, 2], [(0, 1, 1)])
    for name, other in (BOTH, BOTH[::-1]):
        scores = Scores((name,), NUM_PREDICATES, TRAINING)
        scores.update(annotated, from_annotation(annotated))
        values = scores.compute()
        assert ("relationship_recall@50" in values) == (name == "fnet")
        assert ("sgb_R@20" in values) == (name == "sgb")
        assert other not in scores.states
    assert Scores(("fnet",), NUM_PREDICATES, TRAINING).per_predicate(["x"] * 13) == {}


@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
@hypothesis.given(st.lists(st.tuples(annotations(), foreign(30)), max_size=5))
def test_merging(images):
    whole, left, right = (Scores(BOTH, NUM_PREDICATES, TRAINING) for _ in range(3))
    for index, (annotated, predicted) in enumerate(images):
        whole.update(annotated, predicted)
        (left, right)[index % 2].update(annotated, predicted)
    left.merge(right)
    assert left.compute() == pytest.approx(whole.compute())
    names = [str(index) for index in range(NUM_PREDICATES)]
    assert list(left.per_predicate(names)) == names[1:]
    for name, row in whole.per_predicate(names).items():
        assert left.per_predicate(names)[name] == pytest.approx(row)


def test_rows_of_predicates():
    annotated = record([BOX, FAR], [1, 2], [(0, 1, 2), (1, 0, 2), (0, 0, 4)])
    scores = Scores(BOTH, 5, TrainingStatistics((99, 7, 6, 5, 4), []))
    scores.update(annotated, prediction([BOX, FAR], [1, 2], [(0, 1, 2), (1, 1, 4)]))
    rows = scores.per_predicate(["background", "on", "in", "at", "of"])
    assert list(rows) == ["on", "in", "at", "of"]
    recalls = {f"R@{k}": 0.5 for k in (20, 50, 100)}
    assert rows["in"] == {"training": 6, "annotated": 2, "images": 1, **recalls}
    assert rows["of"]["R@20"] == 0.0 and rows["of"]["annotated"] == 1
    assert rows["on"] == {"training": 7, "annotated": 0, "images": 0, **dict.fromkeys(recalls, 0)}
