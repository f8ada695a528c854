"""The training objective as a whole program: of an ordinary image, and of the oddest annotations.

Every loss term and every gradient has to be finite, whatever is annotated and however small the
image. All examples have one static shape, so one program per stage serves them all.
"""

import functools
from unittest import mock

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fnet_jax import targets
from fnet_jax.backbone import LAYERS
from fnet_jax.detect import ProposalOptions
from fnet_jax.objective import TrainOptions, training_losses
from tests.small_model import (
    IMAGE,
    MIN_SIZE,
    NO_PROPOSAL_SCALE,
    OBJECT_CLASSES,
    PREDICATES,
    QUICK,
    assert_finite,
    example,
    random_model,
)

SLOTS = 304  # of annotated objects
OPTIONS = TrainOptions(
    proposals=ProposalOptions(pre_nms=64, post_nms=48, nms_threshold=0.7, min_size=MIN_SIZE),
    # A full image has 48 anchors, one of a single cell two.
    anchors=targets.AnchorOptions(batch_size=16),
    samples=targets.SampleOptions(object_batch=12, relation_batch=8),
    object_weights=(1.0, 2.0, 0.5, 1.0, 3.0),
    predicate_weights=(1.0, 2.0, 3.0, 4.0),
    subgraph_capacities=(96,),
)
STAGES = {  # relation module, what is measured
    "all": (True, {}),
    "proposals": (True, {"graph_loss": False}),
    "graph": (True, {"rpn_loss": False}),
    "graph, no relation module": (False, {"rpn_loss": False}),
}
# Factors that take softmaxes and sigmoids to their ends, but nothing out of float32.
LARGE = {
    "backbone": 3.0,  # thirteen times in a row
    "rpn": 10.0,  # twice in a row; more leaves no proposals but points and whole images
    "object_fc": 1e3,
    "subgraph_conv": 1e3,
    "message_passing_0": 1e4,
    "object_score": 1e4,
    "box_deltas": 1e4,
    "predicate_inference": 1e3,
    "predicate_score": 1e4,
    "duplicate_removal": 1e4,
}


@functools.cache
def program(stage):
    """((params, example, key) -> ((total, report), gradients), params); also counts `objects`."""
    relation_module, parts = STAGES[stage]
    model, params = random_model(relation_module=relation_module)
    sample = targets.sample_objects

    def objective(params, image, key):
        counts = {}

        def counting(*args):
            sampled = sample(*args)
            counts["objects"] = jnp.sum(sampled.mask)
            return sampled

        with mock.patch.object(targets, "sample_objects", counting):
            total, report = training_losses(model, params, image, key, OPTIONS, **parts)
        return total, report | counts

    run = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICK)
    return run, params


def measure(image, stage="all", large=None, seed=0):
    """(total, report, gradients); the part of the network named `large` is scaled up."""
    run, params = program(stage)
    if large:
        scaled = jax.tree.map(lambda x: np.float32(LARGE[large]) * x, params[large])
        params = params | {large: scaled}
    (total, report), gradients = run(params, image, jax.random.key(seed))
    return float(total), jax.tree.map(float, report), jax.tree.map(np.asarray, gradients)


def any_nonzero(tree):
    return any(np.any(leaf) for leaf in jax.tree.leaves(tree))


# ---- odd images ----


def one_pixel(rng, count, height, width):
    corner = rng.integers(0, [width, height], (count, 2))
    return np.concatenate([corner, corner], axis=1)


def one_pixel_in_a_corner(rng, count, height, width):
    corner = rng.integers(0, 2, (count, 2)) * [width - 1, height - 1]
    return np.concatenate([corner, corner], axis=1)


def one_pixel_at_the_border(rng, count, height, width):
    boxes, corners = (f(rng, count, height, width) for f in (one_pixel, one_pixel_in_a_corner))
    return np.where(rng.integers(0, 2, (count, 1)) == [0, 1, 0, 1], corners, boxes)


def anywhere(rng, count, height, width):
    ends = np.sort(rng.uniform(0, [width - 1, height - 1], (count, 2, 2)), axis=1)
    return ends.reshape(count, 4)


def identical(rng, count, height, width):
    return np.repeat(anywhere(rng, 1, height, width), count, axis=0)


def whole_image(rng, count, height, width):
    return np.tile([0, 0, width - 1, height - 1], (count, 1))


def outside_by_rounding(rng, count, height, width):
    out = rng.uniform(0, 1, (count, 4)) * [-1, -1, 1, 1]
    return np.where(rng.random((count, 4)) < 0.5, whole_image(rng, count, height, width), 0) + out


KINDS = (
    one_pixel,
    one_pixel_in_a_corner,
    one_pixel_at_the_border,
    anywhere,
    identical,
    whole_image,
    outside_by_rounding,
)


def annotated(boxes=(), related=0.0, *, size=(60, 90), scale=1.25, seed=0, colour=None):
    """An example with boxes of random classes, of whose pairs, self-pairs too, a part is related.

    `colour` None is noise.
    """
    rng, count = np.random.default_rng(seed), len(boxes)
    image = example(seed, size, scale, slots=SLOTS)
    if colour is not None:
        image["image"] = np.full((*IMAGE, 3), colour, np.uint8)
    gt_boxes, classes = np.zeros((SLOTS, 4), np.float32), np.zeros(SLOTS, np.int32)
    relationships = np.zeros((SLOTS, SLOTS), np.int32)
    gt_boxes[:count] = np.reshape(boxes, (-1, 4))
    classes[:count] = rng.integers(1, OBJECT_CLASSES, count)
    relationships[:count, :count] = rng.integers(1, PREDICATES, (count, count)) * (
        rng.random((count, count)) < related
    )
    return image | {
        "gt_boxes": gt_boxes,
        "gt_classes": classes,
        "gt_relationships": relationships,
    }


BOXES = [[2, 3, 40, 50], [30, 10, 80, 55]]
# Proposals that cover a fraction of a pixel: x2 < x1.
NARROW_PROPOSALS = {"image": annotated(BOXES, 1.0, scale=0.01, seed=4), "large": "rpn", "seed": 4}
seeds = st.integers(0, 2**31 - 1)


@st.composite
def odd_images(draw):
    # No cell of the feature map, one, and all; a valid image may have one pixel.
    size = height, width = (
        draw(st.sampled_from([1, 3, 15, 16, 17, 31, 32, 60, 64])),
        draw(st.sampled_from([1, 3, 15, 16, 17, 31, 48, 90, 96])),
    )
    seed, count = draw(seeds), draw(st.sampled_from([0, 1, 2, 12, 300]))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True))
    rng = np.random.default_rng(seed)
    boxes = np.stack([kind(rng, count, height, width) for kind in kinds])
    return annotated(
        boxes[rng.integers(0, len(kinds), count), np.arange(count)],
        draw(st.sampled_from([0.0, 0.05, 1.0])),
        size=size,
        # The first makes proposals narrower than a pixel valid, the last none.
        scale=draw(st.sampled_from([0.01, 1.25, NO_PROPOSAL_SCALE])),
        seed=seed,
        colour=draw(st.sampled_from([None, 0, 128, 255])),
    )


@pytest.mark.parametrize("stage", STAGES)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(image=odd_images(), large=st.sampled_from([None, *LARGE]), seed=seeds)
@hypothesis.example(**NARROW_PROPOSALS)
def test_odd_images_have_finite_losses_and_gradients(stage, image, large, seed):
    total, report, gradients = measure(image, stage, large, seed)
    assert_finite(report)
    assert_finite(gradients)
    assert total >= 0

    has_cells = min(image["im_info"][:2]) >= 16
    if not has_cells:
        assert total == 0, "an image without a feature teaches nothing"
        assert not any_nonzero(gradients)
    if "rpn_class" in report:
        # Large weights may be certain, and right.
        assert (report["rpn_class"] > 0) == has_cells or large
        assert report["rpn_box"] == 0 or image["gt_classes"].any()
    else:
        assert not any_nonzero(gradients["rpn"]), "proposals are data"
    if "object_class" in report:
        assert report["foreground_objects"] <= report["objects"]
        assert report["foreground_objects"] == 0 or image["gt_classes"].any()
        assert report["foreground_pairs"] == 0 or image["gt_relationships"].any()
        assert report["objects"] > 0 or report["object_class"] == report["predicate"] == 0
        assert report["foreground_objects"] > 0 or (
            report["object_box"] == report["duplicate"] == 0
        )


@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(seed=seeds, count=st.sampled_from([1, 12, 300]))
def test_order_of_the_object_slots_means_nothing(seed, count):
    rng = np.random.default_rng(seed)
    # Boxes without ties: of equal ones the first would be chosen.
    image = annotated(anywhere(rng, count, 60, 90), 0.5, seed=seed)
    order = rng.permutation(SLOTS)
    shuffled = image | {
        "gt_boxes": image["gt_boxes"][order],
        "gt_classes": image["gt_classes"][order],
        "gt_relationships": image["gt_relationships"][order][:, order],
    }
    assert measure(shuffled)[1] == measure(image)[1]


# ---- known images ----


def test_an_ordinary_image_teaches_every_part():
    image = example(slots=SLOTS)
    total, report, gradients = measure(image)
    assert report["foreground_objects"] > 0
    assert report["foreground_pairs"] > 0
    assert report["overflow"] == 0
    assert (
        min(report[name] for name in ("object_class", "object_box", "predicate", "duplicate")) > 0
    )
    assert_finite(gradients)
    for layer, name in enumerate(LAYERS):
        assert np.any(gradients["backbone"][name]["kernel"]) == (layer >= 4), name
    for name in ("rpn", "object_fc", "subgraph_conv", "message_passing_0", "duplicate_removal"):
        assert any_nonzero(gradients[name]), name
    assert measure(image)[0] == total
    assert measure(image, seed=1)[0] != total


@pytest.mark.parametrize(
    ("image", "zero"),
    [
        (annotated(BOXES), {"foreground_pairs"}),
        (
            annotated(),
            {"foreground_objects", "foreground_pairs", "object_box", "duplicate", "rpn_box"},
        ),
        (
            annotated(BOXES, 1.0, scale=NO_PROPOSAL_SCALE),
            {"objects", "object_class", "object_box", "predicate", "num_subgraphs"},
        ),
        (annotated(scale=NO_PROPOSAL_SCALE), {"object_class", "predicate", "rpn_box"}),
        (annotated([[0, 0, 0, 0]], 1.0), {"foreground_objects", "foreground_pairs", "object_box"}),
    ],
    ids=["no relationships", "no objects", "no proposals", "neither", "background alone"],
)
def test_poor_images(image, zero):
    total, report, gradients = measure(image)
    assert total > 0  # the proposal network always learns something
    assert {name for name in zero if report[name] == 0.0} == zero
    assert ("objects" in zero or image["im_info"][2] == NO_PROPOSAL_SCALE) == (
        report["objects"] == 0
    )
    assert_finite(report)
    assert_finite(gradients)


def test_foreground_alone():
    # Every proposal of so narrow an image is one of the object.
    _, report, gradients = measure(annotated([[0, 0, 15, 47]] * 300, 1.0, size=(48, 16)))
    assert report["objects"] == report["foreground_objects"] > 1
    assert report["object_class"] > 0
    assert_finite(report)
    assert_finite(gradients)
