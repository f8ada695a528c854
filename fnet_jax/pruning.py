"""Predicates of no more pairs than the ranked list needs; the list is that of all pairs.

Of the N = R x R pairs of an image few can reach the top of the list: a triplet's score is the
product of a probability and the scores of its two objects, so at most that of its objects. Pairs
are taken in chunks, by descending bound; once a list is filled by triplets that score above the
bound of every pair not taken yet, nothing can change it any more. F-Net's own code infers all of
them (spec, paragraph 9).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fnet_jax.decode import (
    Objects,
    PairPredicates,
    Ranking,
    best_predicates,
    rank_triplets,
    ranked_pairs,
    triplet_scores,
)
from fnet_jax.structures import Pairs, Triplets

# Pairs whose predicates are inferred at once: enough rows for full matrix products, small enough to
# keep the (pairs, P, P, M) intermediate in cache.
PAIR_CHUNK = 512
# A probability may exceed 1 by a rounding, where a device divides inexactly.
_LARGEST_PROBABILITY = 1.000001
_NO_PAIR = -1.0  # the bound when no pair is left


class _List(NamedTuple):
    triplets: Triplets
    complete: jax.Array  # () bool
    wanted: jax.Array  # () int32, triplets above the bound that make the next attempt worthwhile


class _Progress(NamedTuple):
    done: jax.Array  # () int32, pairs taken
    inferred: jax.Array  # (N,) bool
    # One per ranking:
    predicates: tuple[PairPredicates, ...]  # of the N pairs, valid where `inferred`
    lists: tuple[_List, ...]


def infer_and_rank(
    infer: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    num_predicates: int,
    pairs: Pairs,
    objects: Objects,
    rankings: tuple[Ranking, ...],
    *,
    prune: bool = True,
) -> tuple[tuple[Triplets, ...], jax.Array]:
    """Infers predicates, chunk by chunk, until no list can change any more.

    Args:
      infer: (n,) int32 indices of subject, object and subgraph -> (n, Q) float32 predicate
        probabilities.
      num_predicates: Q, with background.
      pairs: N pairs of regions of interest.
      objects: decoded objects.
      rankings: the lists that are wanted.
      prune: False infers all pairs.

    Returns: (a list for each ranking, () int32 pairs inferred).
    """
    count = pairs.mask.shape[0]
    bounds, order = _descending_bounds(pairs, objects, rankings)

    def attempt(ranking, predicates, inferred, bound, old: _List) -> _List:
        """Ranks again if a list may have become complete."""
        if ranking.predicate_only:
            bound = jnp.where(bound > _NO_PAIR, _LARGEST_PROBABILITY, _NO_PAIR)
        if not prune:
            bound = jnp.where(bound > _NO_PAIR, jnp.inf, _NO_PAIR)
        known = pairs.replace(mask=inferred)
        scores = triplet_scores(predicates, known, objects, ranking)
        certain = jnp.sum(scores > bound, dtype=jnp.int32)

        def rank():
            triplets = rank_triplets(predicates, known, objects, ranking, above=bound)
            complete = jnp.all(triplets.mask) | (bound == _NO_PAIR)
            # Triplet NMS left too few: wait for a quarter more, so that attempts stay few.
            return _List(triplets, complete, certain + certain // 4)

        due = ~old.complete & ((certain >= old.wanted) | (bound == _NO_PAIR))
        return jax.lax.cond(due, rank, lambda: old)

    def step(progress: _Progress) -> _Progress:
        # N, which no write reaches, where no pair is left.
        chunk = jax.lax.dynamic_slice_in_dim(order, progress.done, PAIR_CHUNK)
        rows = jnp.minimum(chunk, count - 1)
        probs = infer(pairs.subjects[rows], pairs.objects[rows], pairs.subgraphs[rows])
        predicates = jax.tree.map(
            lambda all_, new: all_.at[chunk].set(new, mode="drop"),
            progress.predicates,
            tuple(best_predicates(probs, ranking.predicates_per_pair) for ranking in rankings),
        )
        inferred = progress.inferred.at[chunk].set(True, mode="drop")
        done = progress.done + PAIR_CHUNK
        lists = tuple(
            attempt(ranking, own, inferred, bounds[done], old)
            for ranking, own, old in zip(rankings, predicates, progress.lists, strict=True)
        )
        return _Progress(done, inferred, predicates, lists)

    def incomplete(progress: _Progress):
        return ~jnp.all(jnp.stack([one.complete for one in progress.lists]))

    shape = jax.ShapeDtypeStruct((count, num_predicates), jnp.float32)
    empty = jax.tree.map(
        jnp.zeros_like,
        tuple(
            jax.eval_shape(lambda x, r=ranking: best_predicates(x, r.predicates_per_pair), shape)
            for ranking in rankings
        ),
    )
    start = _Progress(
        done=jnp.zeros((), jnp.int32),
        inferred=jnp.zeros(count, bool),
        predicates=empty,
        lists=tuple(
            _empty_list(ranking, own.probs.size)
            for ranking, own in zip(rankings, empty, strict=True)
        ),
    )
    progress = jax.lax.while_loop(incomplete, step, start)
    return tuple(one.triplets for one in progress.lists), jnp.sum(progress.inferred)


def _descending_bounds(pairs: Pairs, objects: Objects, rankings: tuple[Ranking, ...]):
    """What no triplet of a pair can exceed, and the pairs in that order, both padded by a chunk.

    Pairs that no ranking lists come last, as index N with the bound `_NO_PAIR`.
    """
    listed = jnp.zeros(pairs.mask.shape, bool)
    for ranking in rankings:
        listed |= ranked_pairs(pairs, objects, ranking)
    subject = objects.scores[objects.slot[pairs.subjects]]
    other = objects.scores[objects.slot[pairs.objects]]
    bounds = jnp.where(listed, subject * other * _LARGEST_PROBABILITY, _NO_PAIR)
    count = bounds.shape[0]
    negated, order = jax.lax.sort_key_val(-bounds, jnp.arange(count, dtype=jnp.int32))
    order = jnp.where(-negated > _NO_PAIR, order, count)
    padding = (0, PAIR_CHUNK)
    return (
        jnp.pad(-negated, padding, constant_values=_NO_PAIR),
        jnp.pad(order, padding, constant_values=count),
    )


def _empty_list(ranking: Ranking, size: int) -> _List:
    """A list with the slots of one that is made from `size` triplets."""
    slots = min(ranking.max_triplets, ranking.max_candidates, size)
    zeros = jnp.zeros(slots, jnp.int32)
    empty = Triplets(zeros, zeros, zeros, jnp.zeros(slots, jnp.float32), jnp.zeros(slots, bool))
    return _List(empty, jnp.zeros((), bool), jnp.asarray(slots, jnp.int32))
