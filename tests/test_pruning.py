"""The pruned ranking is the ranking of all pairs: every index, every score, every tie."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnet_jax import pruning
from fnet_jax.decode import Objects, Ranking, best_predicates, rank_triplets
from fnet_jax.structures import Pairs
from tests.kernels import cases

R, Q, CHUNK = 12, 6, 16
FNET = Ranking(predicates_per_pair=3, max_candidates=200, max_triplets=10)
SGB = (
    dataclasses.replace(FNET, predicates_per_pair=1, self_pairs=False),
    dataclasses.replace(FNET, predicates_per_pair=None, self_pairs=False),
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(pruning, "PAIR_CHUNK", CHUNK)


def all_pairs(mask) -> Pairs:
    subjects, objects = np.divmod(np.arange(R * R, dtype=np.int32), np.int32(R))
    return Pairs(subjects, objects, np.zeros(R * R, np.int32), mask[subjects] & mask[objects])


def graph(rng, sharpness: float, ties: bool):
    """Objects, their pairs and the predicate probabilities of these."""
    scores = rng.random(R).astype(np.float32) ** np.float32(sharpness)
    probs = rng.dirichlet(np.full(Q, 0.3), R * R).astype(np.float32)
    if ties:
        scores = cases.eighths(rng.integers(0, 9, R))
        probs = cases.eighths(rng.integers(0, 9, (R * R, Q)))
    slot = np.arange(R, dtype=np.int32)
    slot[rng.random(R) < 0.15] = -1  # removed by object NMS
    objects = Objects(
        boxes=cases.crowd(rng, R, places=4),
        scores=scores,
        classes=rng.integers(1, 4, R).astype(np.int32),
        mask=slot >= 0,
        slot=slot,
    )
    return objects, all_pairs(rng.random(R) < 0.9), probs


@functools.partial(jax.jit, static_argnums=(0, 4))
def pruned(rankings, objects, pairs, probs, prune=True):
    def infer(subjects, others, subgraphs):
        return probs[subjects * R + others]

    return pruning.infer_and_rank(infer, Q, pairs, objects, rankings, prune=prune)


@functools.partial(jax.jit, static_argnums=0)
def whole(rankings, objects, pairs, probs):
    return tuple(
        rank_triplets(best_predicates(probs, r.predicates_per_pair), pairs, objects, r)
        for r in rankings
    )


def assert_same(lists, expected):
    for one, other in zip(lists, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("rankings", [(FNET,), (FNET, *SGB)], ids=["fnet", "both protocols"])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@cases.settings
@hypothesis.given(cases.seeds)
def test_same_lists_as_of_all_pairs(rankings, ties, seed):
    rng = np.random.default_rng(seed)
    objects, pairs, probs = graph(rng, rng.choice([0.1, 1.0, 8.0]), ties)
    expected = whole(rankings, objects, pairs, probs)
    lists, inferred = pruned(rankings, objects, pairs, probs)
    assert_same(lists, expected)
    assert inferred <= pairs.mask.sum()
    lists, inferred = pruned(rankings, objects, pairs, probs, False)
    assert_same(lists, expected)


@pytest.mark.parametrize("changes", [{"triplet_threshold": None}, {"predicate_only": True}])
@hypothesis.settings(cases.settings, max_examples=10)
@hypothesis.given(cases.seeds)
def test_other_rankings(changes, seed):
    rankings = (dataclasses.replace(FNET, **changes),)
    arrays = graph(np.random.default_rng(seed), 2.0, False)
    assert_same(pruned(rankings, *arrays)[0], whole(rankings, *arrays))


def test_certain_objects_leave_the_rest_alone():
    """Three objects far above the others: a chunk of pairs decides the list."""
    objects, pairs, probs = graph(np.random.default_rng(3), 1.0, False)
    scores = np.full(R, 1e-3, np.float32)
    scores[:4] = 0.9
    slot = np.arange(R, dtype=np.int32)
    apart = np.stack([100 * slot, slot, 100 * slot + 50, slot + 50], axis=1).astype(np.float32)
    objects = objects.replace(
        boxes=apart, scores=scores, slot=slot, classes=slot + 1, mask=slot >= 0
    )
    pairs = all_pairs(np.ones(R, bool))
    lists, inferred = pruned((FNET,), objects, pairs, probs)
    assert_same(lists, whole((FNET,), objects, pairs, probs))
    assert inferred == CHUNK
    assert pruned((FNET,), objects, pairs, probs, False)[1] == R * R


def test_probabilities_alone_need_all_pairs():
    objects, pairs, probs = graph(np.random.default_rng(4), 8.0, False)
    rankings = (dataclasses.replace(FNET, predicate_only=True),)
    listed = pairs.mask & (objects.slot[pairs.subjects] >= 0) & (objects.slot[pairs.objects] >= 0)
    assert pruned(rankings, objects, pairs, probs)[1] == listed.sum() > 3 * CHUNK


def test_nothing_to_rank():
    objects, _, probs = graph(np.random.default_rng(5), 1.0, False)
    (triplets,), inferred = pruned((FNET,), objects, all_pairs(np.zeros(R, bool)), probs)
    assert inferred == 0
    assert not triplets.mask.any()


def test_vmap_equals_a_loop():
    graphs = [
        graph(np.random.default_rng(seed), power, False) for seed, power in ((6, 0.1), (7, 9))
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *graphs)
    together = jax.vmap(lambda *x: pruned((FNET,), *x))(*stacked)
    for i, arrays in enumerate(graphs):
        one = jax.tree.map(lambda x, i=i: x[i], together)
        lists, inferred = pruned((FNET,), *arrays)
        assert_same(one[0], lists)
        assert one[1] == inferred
