"""Detection as a whole program, on the images that break programs."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from fnet_jax import detect as detection
from fnet_jax import pruning
from fnet_jax.detect import ProposalOptions, detect
from fnet_jax.kernels import cluster_pairs
from tests.small_model import (
    MIN_SIZE,
    NO_PROPOSAL_SCALE,
    PREDICATES,
    QUICK,
    assert_finite,
    example,
    random_model,
)

R = 12
PROPOSALS = ProposalOptions(pre_nms=64, post_nms=16, min_size=MIN_SIZE)
OPTIONS = detection.TestOptions(
    proposals=PROPOSALS,
    max_objects=R,
    subgraph_capacities=(64,),
    subgraph_nms=0.7,
    max_triplets=30,
)
traces = []


@pytest.fixture(scope="module")
def network():
    return random_model(relation_module=False)


@functools.cache
def program(model, options):
    def run(params, example):
        traces.append(options)
        return detect(model, params, example, options)

    return jax.jit(run, compiler_options=QUICK)


def detected(network, example, options=OPTIONS):
    model, params = network
    return jax.tree.map(np.asarray, program(model, options)(params, example))


def assert_same_graph(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves = zip(
        jax.tree.leaves(actual), jax.tree_util.tree_leaves_with_path(expected), strict=True
    )
    for a, (path, b) in leaves:
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


def no_objects(**changes):
    image = example(**changes)
    zero = {name: np.zeros_like(image[name]) for name in ("gt_classes", "gt_relationships")}
    return image | zero


# ---- one program ----


def test_detection_traces_once_for_equal_shapes(network):
    detected(network, example())
    before = len(traces)
    first = detected(network, example())
    other = detected(network, example(seed=1, size=(40, 70), scale=2.0))
    assert len(traces) == before
    assert np.any(first.class_probs != other.class_probs)


def test_detection_is_ranked_and_in_the_original_image(network):
    graph = detected(network, example(size=(40, 70), scale=2.0))
    assert 0 < graph.roi_mask.sum() < R  # some slots are unused
    assert (graph.boxes >= 0).all()
    assert (graph.boxes <= [34, 19, 34, 19]).all()  # 70 / 2 - 1 and 40 / 2 - 1
    assert (np.diff(graph.triplet_scores) <= 0).all()
    assert graph.triplet_mask.any()
    assert graph.overflow == 0


def test_fewer_than_ten_predicates(network):
    graph = detected(network, example())
    assert OPTIONS.predicates_per_pair > PREDICATES - 1
    assert graph.predicates.min() >= 1
    assert graph.predicates.max() < PREDICATES


def test_vmap_is_a_loop(network):
    model, params = network
    images = [example(), example(seed=1, size=(40, 70), scale=2.0), no_objects(seed=2)]
    batch = jax.tree.map(lambda *x: np.stack(x), *images)
    run = jax.vmap(lambda e: detect(model, params, e, OPTIONS))
    together = jax.tree.map(np.asarray, jax.jit(run, compiler_options=QUICK)(batch))
    for i, image in enumerate(images):
        mine = jax.tree.map(lambda x, i=i: x[i], together)
        assert_same_graph(mine, detected(network, image))


# ---- subgraph capacity ----


@pytest.mark.parametrize("capacities", [(16, 64), (96,)])
def test_capacity_that_suffices_changes_nothing(network, capacities):
    options = dataclasses.replace(OPTIONS, subgraph_capacities=capacities)
    counts = []
    for image in (example(), example(size=(20, 30))):
        expected = detected(network, image)
        assert_same_graph(detected(network, image, options), expected)
        counts.append(expected.num_subgraphs)
    # So both capacities of (16, 64) were used.
    assert min(counts) <= 16 < max(counts) <= 64


@pytest.mark.parametrize("changes", [{}, {"self_pairs": False, "sgb_rankings": True}])
def test_pruning_changes_nothing(network, changes, monkeypatch):
    monkeypatch.setattr(pruning, "PAIR_CHUNK", 16)
    options = dataclasses.replace(OPTIONS, max_triplets=5, **changes)
    model, params = network
    # Certain classes: then few pairs can be at the top.
    head = jax.tree.map(lambda x: 30 * x, params["object_score"])
    network = model, params | {"object_score": head}
    graph = detected(network, example(), options)
    full = detected(network, example(), dataclasses.replace(options, prune_pairs=False))
    assert (
        0
        < graph.inferred_pairs
        < full.inferred_pairs
        == graph.roi_mask.sum() ** 2 - (graph.roi_mask.sum() if changes else 0)
    )
    assert_same_graph(graph.replace(inferred_pairs=full.inferred_pairs), full)


def test_pairs_beyond_the_capacity_are_counted_and_left_out(network, monkeypatch):
    model, params = network
    seen = []

    def spy(*args, **kwargs):
        seen.append(cluster_pairs(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(detection, "cluster_pairs", spy)
    options = dataclasses.replace(
        OPTIONS, subgraph_capacities=(3,), triplet_nms=None, max_triplets=R * R * PREDICATES
    )
    run = jax.jit(
        lambda p, e: (detect(model, p, e, options), seen[-1].pair_cluster), compiler_options=QUICK
    )
    graph, pair_cluster = jax.tree.map(np.asarray, run(params, example()))
    placed = pair_cluster >= 0
    assert graph.num_subgraphs == 3
    assert graph.overflow == np.sum(~placed) > 0
    subjects, objects = graph.subjects[graph.triplet_mask], graph.objects[graph.triplet_mask]
    listed = np.zeros((R, R), int)
    np.add.at(listed, (subjects, objects), 1)
    np.testing.assert_array_equal(listed, placed * (PREDICATES - 1))
    assert_finite(graph)


# ---- images with little in them ----


def test_no_proposals(network):
    graph = detected(network, example(scale=NO_PROPOSAL_SCALE))
    for mask in (graph.object_mask, graph.roi_mask, graph.triplet_mask, graph.proposal_mask):
        assert not mask.any()
    assert graph.num_subgraphs == 0
    assert graph.overflow == 0
    assert_finite(graph)


def test_given_boxes(network):
    options = dataclasses.replace(OPTIONS, use_gt_boxes=True)
    image = example()
    graph = detected(network, image, options)
    np.testing.assert_allclose(graph.boxes[:2], image["gt_boxes"][:2] / 1.25, rtol=1e-6)
    pairs = set(zip(graph.subjects.tolist(), graph.objects.tolist(), strict=True))
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert np.sum(graph.triplet_mask) == 4 * (PREDICATES - 1)

    nothing = detected(network, no_objects(), options)
    assert nothing.roi_mask.any()  # proposals are there still
    assert not nothing.triplet_mask.any()
    assert_finite(nothing)

    neither = detected(network, no_objects(scale=NO_PROPOSAL_SCALE), options)
    assert not neither.roi_mask.any()
    assert not neither.triplet_mask.any()
    assert_finite(neither)


def rows(triplets, mask=None):
    """(subject, object, predicate) of the triplets in use, in rank order."""
    used = triplets.mask if mask is None else mask
    columns = triplets.subjects, triplets.objects, triplets.predicates
    return list(zip(*(column[used].tolist() for column in columns), strict=True))


def test_rankings_of_the_sgb_protocol(network):
    """The best predicate of each pair, and all of them: by the product of three scores."""
    options = dataclasses.replace(
        OPTIONS, sgb_rankings=True, self_pairs=False, triplet_nms=None, max_triplets=400
    )
    graph = detected(network, example(), options)
    free, constrained = rows(graph.unconstrained), rows(graph.constrained)
    used = np.flatnonzero(graph.object_mask)
    pairs = {(s, o) for s in used for o in used if s != o}
    assert set(free) == {(s, o, p) for s, o in pairs for p in range(1, PREDICATES)}
    best = {}
    for subject, object_, predicate in free:
        best.setdefault((subject, object_), predicate)
    assert constrained == [(*pair, predicate) for pair, predicate in best.items()]
    assert free == rows(graph, graph.triplet_mask), "F-Net's own list, as nothing is thinned"
    assert (np.diff(graph.unconstrained.scores) <= 0).all()


def test_given_boxes_are_all_paired_for_pair_accuracy(network):
    options = dataclasses.replace(OPTIONS, use_gt_boxes=True, sgb_rankings=True, max_triplets=1)
    graph = detected(network, example(), options)
    assert len(rows(graph, graph.triplet_mask)) == len(rows(graph.unconstrained)) == 1
    assert {row[:2] for row in rows(graph.constrained)} == {(0, 1), (1, 0)}


def test_given_labels(network):
    options = dataclasses.replace(OPTIONS, use_gt_boxes=True, use_gt_labels=True, sgb_rankings=True)
    image = example()
    graph = detected(network, image, options)
    np.testing.assert_array_equal(graph.classes[:2], image["gt_classes"][:2])
    np.testing.assert_array_equal(graph.scores[:2], [1.0, 1.0])
    # With certain objects the product of scores is the predicate's probability.
    assert {(s, o) for s, o, _ in rows(graph.constrained)} == {(0, 1), (1, 0)}
    fnet = dict(zip(rows(graph, graph.triplet_mask), graph.triplet_scores.tolist(), strict=False))
    for row, score in zip(rows(graph.unconstrained), graph.unconstrained.scores, strict=False):
        assert score == pytest.approx(fnet[row], rel=1e-6)
