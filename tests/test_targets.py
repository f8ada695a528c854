"""What is sampled for training: how much, of what, and in which order."""

import functools

import hypothesis
import hypothesis.extra.numpy as npst
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fnet_jax import targets
from fnet_jax.kernels import encode_boxes
from fnet_jax.structures import AnchorTargets, ObjectTargets, Proposals

settings = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)

# ---- anchors ----

ANCHORS = 40
ANCHOR_OPTIONS = targets.AnchorOptions(batch_size=12, foreground_fraction=0.5)


@jax.jit
def _sample_anchors(seed, labels):
    deltas = jnp.ones((ANCHORS, 4), jnp.float32)
    sampled = targets.sample_anchors(
        jax.random.key(seed), AnchorTargets(labels, deltas), ANCHOR_OPTIONS
    )
    return sampled.labels


def sample_anchors(seed, labels):
    return np.asarray(_sample_anchors(np.uint32(seed), np.asarray(labels, np.int32)))


@settings
@hypothesis.given(
    seeds,
    # Few of the one kind and many of the other are both common.
    st.sampled_from([(-1, 0, 1), (0, 1), (-1, 1), (-1, 0), (-1,), (0, 0, 0, 0, 0, 1)]).flatmap(
        lambda kinds: npst.arrays(np.int32, ANCHORS, elements=st.sampled_from(kinds))
    ),
)
def test_sampled_anchors_fill_the_batch_and_no_more(seed, labels):
    sampled = sample_anchors(seed, labels)
    chosen = sampled >= 0
    np.testing.assert_array_equal(sampled[chosen], labels[chosen])  # never an ignored one
    objects = min(6, np.sum(labels == 1))
    assert np.sum(sampled == 1) == objects
    assert np.sum(sampled == 0) == min(12 - objects, np.sum(labels == 0))


def test_anchors_are_drawn_from_the_key():
    labels = np.arange(ANCHORS) % 2
    draws = [sample_anchors(seed, labels) for seed in range(60)]
    np.testing.assert_array_equal(draws[0], sample_anchors(0, labels))
    assert np.any(draws[0] != draws[1])
    often = np.sum(np.stack(draws) >= 0, axis=0)
    # Each is drawn with chance 6/20, 18 times of 60 on average: none is left out or preferred.
    assert often.min() >= 6
    assert often.max() <= 34


def test_anchor_labels_ignore_unused_object_slots():
    base = np.array([[-8, -8, 23, 23], [0, 0, 15, 15]], np.float32)
    im_info = np.array([64, 64, 1, 64, 64], np.float32)
    options = targets.AnchorOptions()

    @jax.jit
    def label(boxes, mask):
        return targets.anchor_labels(base, (4, 4), (4, 4), im_info, boxes, mask, options)

    # The unused slots hold the first anchor of the first cell, which would be an object's best.
    boxes = np.array([[20, 20, 50, 50], *[[-8, -8, 23, 23]] * 2], np.float32)
    padded, alone = label(boxes, np.array([True, False, False])), label(boxes[:1], np.ones(1, bool))
    jax.tree.map(np.testing.assert_array_equal, padded, alone)
    assert np.any(np.asarray(alone.labels) == 1)
    nothing = label(boxes, np.zeros(3, bool))
    np.testing.assert_array_equal(nothing.labels, 0)  # background, all of them
    np.testing.assert_array_equal(nothing.deltas, 0.0)


# ---- objects ----

PROPOSALS, OBJECT_BATCH = 24, 10
GT_BOXES = np.array([[0, 0, 39, 39], [200, 0, 239, 39]], np.float32)
GT_CLASSES = np.array([3, 1], np.int32)
OPTIONS = targets.SampleOptions(object_batch=OBJECT_BATCH, relation_batch=12)


@jax.jit
def _sample_objects(seed, proposals, gt_boxes, gt_classes):
    return targets.sample_objects(jax.random.key(seed), proposals, gt_boxes, gt_classes, OPTIONS)


def sample_objects(seed, proposals, gt_boxes=GT_BOXES, gt_classes=GT_CLASSES) -> ObjectTargets:
    sampled = _sample_objects(np.uint32(seed), proposals, gt_boxes, gt_classes)
    return jax.tree.map(np.asarray, sampled)


def proposals_at(boxes, mask=None) -> Proposals:
    """Proposals whose score names them: `(M - index) / M`."""
    boxes = np.asarray(boxes, np.float32)
    number = len(boxes)
    scores = ((number - np.arange(number)) / number).astype(np.float32)
    return Proposals(boxes, scores, np.ones(number, bool) if mask is None else mask)


@st.composite
def shifted_proposals(draw):
    """(proposals, object each one overlaps, IoU): object boxes, shifted to the right."""
    which = draw(npst.arrays(np.int32, PROPOSALS, elements=st.integers(0, 1)))
    most = draw(st.sampled_from([5, 13, 40]))  # 5: objects only; 13: all but background
    shift = draw(npst.arrays(np.int32, PROPOSALS, elements=st.integers(0, most)))
    mask = draw(npst.arrays(bool, PROPOSALS))
    boxes = GT_BOXES[which] + (shift[:, None] * [1, 0, 1, 0]).astype(np.float32)
    return proposals_at(boxes, mask), which, (40 - shift) / (40 + shift)


@settings
@hypothesis.given(seeds, shifted_proposals())
def test_sampled_objects(seed, case):
    proposals, which, overlap = case
    sampled = sample_objects(seed, proposals)
    is_object = proposals.mask & (overlap >= 0.5)
    is_background = proposals.mask & (overlap < 0.4)
    num_objects = min(OBJECT_BATCH // 2, np.sum(is_object))
    num = num_objects + min(OBJECT_BATCH - num_objects, np.sum(is_background))
    np.testing.assert_array_equal(sampled.mask, np.arange(OBJECT_BATCH) < num)

    index = np.rint(PROPOSALS * (1 - sampled.scores[:num])).astype(int)
    assert len(set(index)) == num, "a proposal was drawn twice"
    np.testing.assert_array_equal(sampled.boxes[:num], proposals.boxes[index])
    objects, others = index[:num_objects], index[num_objects:]
    assert is_object[objects].all()
    assert is_background[others].all()
    assert (np.diff(overlap[objects]) <= 0).all(), "objects are not in order of overlap"

    np.testing.assert_array_equal(sampled.gt_index[:num_objects], which[objects])
    np.testing.assert_array_equal(sampled.labels[:num_objects], GT_CLASSES[which[objects]])
    np.testing.assert_array_equal(sampled.labels[num_objects:], 0)
    shift = proposals.boxes[objects, 0] - GT_BOXES[which[objects], 0]
    expected = np.zeros((OBJECT_BATCH, 4))
    expected[:num_objects, 0] = -shift / 40 / 0.1
    np.testing.assert_allclose(sampled.deltas, expected, atol=1e-5)

    assert not sampled.first[num_objects:].any()
    for object_ in range(2):
        mine = np.flatnonzero(which[objects] == object_)
        first = mine[sampled.first[mine]]
        assert len(first) == min(1, len(mine))
        if len(mine):
            assert overlap[objects[first[0]]] == overlap[objects[mine]].max()


def test_overlaps_at_the_thresholds():
    # 20 and 16 of the object's 40 columns: IoU is 0.5, an object, and 0.4, never drawn.
    sampled = sample_objects(0, proposals_at([[0, 0, 19, 39], [0, 0, 15, 39], [0, 0, 14, 39]]))
    np.testing.assert_array_equal(sampled.mask, np.arange(OBJECT_BATCH) < 2)
    np.testing.assert_array_equal(sampled.boxes[:2, 2], [19, 14])
    np.testing.assert_array_equal(sampled.labels[:2], [3, 0])


def test_objects_are_drawn_from_the_key():
    proposals = proposals_at(GT_BOXES[np.arange(PROPOSALS) % 2])
    first, again, other = (sample_objects(seed, proposals) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first.scores != other.scores)


def test_unused_object_slots_change_nothing():
    rng = np.random.default_rng(0)
    shift = rng.integers(0, 40, (PROPOSALS, 1)) * [1, 0, 1, 0]
    proposals = proposals_at(GT_BOXES[rng.integers(0, 2, PROPOSALS)] + shift)
    alone = sample_objects(5, proposals)
    # The unused slots hold boxes that fit proposals perfectly.
    padded = sample_objects(
        5,
        proposals,
        np.concatenate([GT_BOXES, proposals.boxes[-4:]]),
        np.concatenate([GT_CLASSES, np.zeros(4, np.int32)]),
    )
    assert (alone.labels > 0).any()
    jax.tree.map(np.testing.assert_array_equal, padded, alone)


def test_no_annotated_objects_leaves_background_alone():
    sampled = sample_objects(
        0, proposals_at(np.tile(GT_BOXES, (12, 1))), gt_classes=np.zeros(2, np.int32)
    )
    assert sampled.mask.all()
    np.testing.assert_array_equal(sampled.labels, 0)
    np.testing.assert_array_equal(sampled.deltas, 0.0)
    assert not sampled.first.any()


def test_no_proposals_leaves_nothing():
    sampled = sample_objects(0, proposals_at(np.tile(GT_BOXES, (12, 1)), np.zeros(PROPOSALS, bool)))
    for field in (sampled.mask, sampled.labels, sampled.boxes, sampled.scores, sampled.first):
        np.testing.assert_array_equal(field, np.zeros_like(field))


# ---- pairs ----

ROWS, PAIR_BATCH = 6, OPTIONS.relation_batch


@jax.jit
def _sample_pairs(seed, objects, gt_relationships):
    return targets.sample_pairs(jax.random.key(seed), objects, gt_relationships, OPTIONS)


def sample_pairs(seed, labels, gt_index, gt_relationships, count: int = ROWS):
    objects = ObjectTargets(
        boxes=np.zeros((ROWS, 4), np.float32),
        scores=np.zeros(ROWS, np.float32),
        mask=np.arange(ROWS) < count,
        labels=np.asarray(labels, np.int32),
        deltas=np.zeros((ROWS, 4), np.float32),
        gt_index=np.asarray(gt_index, np.int32),
        first=np.zeros(ROWS, bool),
    )
    pairs = _sample_pairs(np.uint32(seed), objects, np.asarray(gt_relationships, np.int32))
    return jax.tree.map(np.asarray, pairs)


@settings
@hypothesis.given(
    seed=seeds,
    count=st.integers(0, ROWS),
    foreground=st.integers(0, ROWS),
    gt_index=npst.arrays(np.int32, ROWS, elements=st.integers(0, 2)),
    matrix=st.sampled_from([1, 3]).flatmap(
        lambda most: npst.arrays(np.int32, (3, 3), elements=st.integers(0, most))
    ),
)
def test_sampled_pairs(seed, count, foreground, gt_index, matrix):
    foreground = min(foreground, count)  # objects come first, then background, then unused slots
    labels = np.where(np.arange(ROWS) < foreground, 1, 0)
    pairs = sample_pairs(seed, labels, gt_index, matrix, count)
    predicate = matrix[gt_index[:, None], gt_index[None]]
    predicate[foreground:] = predicate[:, foreground:] = 0
    num = min(PAIR_BATCH // 2, np.sum(predicate > 0))

    np.testing.assert_array_equal(pairs.mask, np.full(PAIR_BATCH, count > 0))
    annotated = list(zip(pairs.subjects[:num], pairs.objects[:num], strict=True))
    assert len(set(annotated)) == num, "an annotated pair was drawn twice"
    np.testing.assert_array_equal(
        pairs.labels[:num], predicate[pairs.subjects[:num], pairs.objects[:num]]
    )
    assert (pairs.labels[:num] > 0).all()
    np.testing.assert_array_equal(pairs.labels[num:], 0)
    if count:
        assert max(pairs.subjects.max(), pairs.objects.max()) < count
    if count > 1:
        assert (pairs.subjects[num:] != pairs.objects[num:]).all(), "a random self-pair"


def test_two_proposals_of_an_object_related_to_itself_are_a_positive_pair():
    matrix = np.zeros((3, 3))
    matrix[1, 1] = 2
    pairs = sample_pairs(0, [1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1], matrix)
    related = pairs.labels == 2
    found = set(zip(pairs.subjects[related].tolist(), pairs.objects[related].tolist(), strict=True))
    assert found == {(0, 0), (0, 2), (2, 0), (2, 2)}


def test_random_pairs_are_not_checked_against_the_annotation():
    matrix = np.array([[0, 1, 0], [2, 0, 0], [0, 0, 0]])
    pairs = sample_pairs(0, [1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], matrix, count=2)
    np.testing.assert_array_equal(pairs.labels > 0, np.arange(PAIR_BATCH) < 2)
    # With two objects every random pair is an annotated one; it is background all the same.
    np.testing.assert_array_equal(pairs.subjects[2:] + pairs.objects[2:], 1)


def test_pairs_are_drawn_from_the_key():
    draw = functools.partial(
        sample_pairs,
        labels=np.ones(ROWS),
        gt_index=np.zeros(ROWS),
        gt_relationships=np.ones((3, 3)),
    )
    first, again, other = draw(0), draw(0), draw(1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    half = PAIR_BATCH // 2
    assert np.any(first.subjects[:half] != other.subjects[:half])
    assert np.any(first.subjects[half:] != other.subjects[half:])


@pytest.mark.parametrize("limit", [3, 8])
def test_draw_takes_candidates_first(limit):
    index, used = jax.jit(targets.draw, static_argnums=2)(
        jax.random.key(0), np.array([False, True, False, True, False]), limit
    )
    np.testing.assert_array_equal(used, np.arange(limit) < 2)
    assert set(np.asarray(index[:2]).tolist()) == {1, 3}


def test_deltas_lead_from_the_proposal_to_its_object():
    proposal = np.array([[4, 2, 41, 35]], np.float32)
    sampled = sample_objects(0, proposals_at(proposal))
    np.testing.assert_allclose(
        sampled.deltas[0], encode_boxes(proposal[0], GT_BOXES[0]), rtol=1e-5, atol=1e-6
    )
