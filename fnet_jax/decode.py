"""Reads the graph off: object boxes and classes, then ranked, thinned triplets."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from fnet_jax.kernels import class_aware_nms, clip_boxes, decode_boxes, triplet_nms
from fnet_jax.structures import Pairs, Triplets

MAX_OBJECTS_AFTER_NMS = 100


@flax.struct.dataclass
class Objects:
    """Decoded objects; for every region of interest, the slot its object went to (-1: removed)."""

    boxes: jax.Array  # (R, 4) float32, original-image pixels
    scores: jax.Array  # (R,) float32
    classes: jax.Array  # (R,) int32
    mask: jax.Array  # (R,) bool
    slot: jax.Array  # (R,) int32


def class_boxes(boxes, deltas, im_info):
    """Boxes of every class: (R, 4), (R, C, 4) -> (R, C, 4), original-image pixels, clipped."""
    decoded = decode_boxes(boxes[:, None], deltas) / im_info[2]
    return clip_boxes(decoded, im_info[0] / im_info[2], im_info[1] / im_info[2])


def decode_objects(
    class_probs, factor, candidate_boxes, mask, *, object_nms: float | None
) -> Objects:
    """Best non-background class, its box, and probability times duplicate factor as the score.

    Args:
      class_probs: (R, C) float32.
      factor: (R,) float32 from duplicate removal; ones to leave it out.
      candidate_boxes: (R, C, 4) one box per class, original-image pixels.
      mask: (R,) bool.
      object_nms: IoU threshold of class-aware NMS, after which at most 100 objects remain in score
        order; None keeps all objects where they are.
    """
    num = mask.shape[0]
    best = jnp.argmax(class_probs[:, 1:], axis=1).astype(jnp.int32)
    scores = jnp.take_along_axis(class_probs[:, 1:], best[:, None], axis=1)[:, 0] * factor
    classes = best + 1
    boxes = jnp.take_along_axis(candidate_boxes, classes[:, None, None], axis=1)[:, 0]
    rows = jnp.arange(num, dtype=jnp.int32)
    if object_nms is None:
        return Objects(boxes, scores, classes, mask, jnp.where(mask, rows, -1))
    kept = class_aware_nms(
        boxes, scores, classes, object_nms, min(MAX_OBJECTS_AFTER_NMS, num), mask=mask
    )
    slots = kept.indices.shape[0]
    slot = jnp.full(num, -1, jnp.int32)
    # Unused slots must not write: they would claim object 0.
    slot = slot.at[jnp.where(kept.mask, kept.indices, num)].set(rows[:slots], mode="drop")
    pad = (0, num - slots)
    order, used = jnp.pad(kept.indices, pad), jnp.pad(kept.mask, pad)
    return Objects(boxes[order], scores[order], classes[order], used, slot)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """One way of listing the triplets of an image from best to worst.

    Attributes:
      predicates_per_pair: best non-background predicates of a pair that take part; None for all,
        which saves sorting them.
      max_candidates: triplets that enter triplet NMS.
      max_triplets: T, the length of the list.
      triplet_threshold: a better triplet of the same three classes removes those whose both boxes
        overlap its own by more; None switches triplet NMS off.
      predicate_only: rank by the predicate probability alone (ground-truth boxes), not by its
        product with the scores of both objects.
      self_pairs: whether an object may be related to itself.
    """

    predicates_per_pair: int | None
    max_candidates: int = 10000
    max_triplets: int = 100
    triplet_threshold: float | None = 0.4
    predicate_only: bool = False
    self_pairs: bool = True


@flax.struct.dataclass
class PairPredicates:
    """Non-background predicates of N pairs that take part in a ranking."""

    probs: jax.Array  # (N, k) float32
    classes: jax.Array  # (N, k) int32, >= 1


def best_predicates(predicate_probs, count: int | None) -> PairPredicates:
    """The `count` most probable predicates of each pair, best first; None for all, by class.

    (N, Q) -> (N, k) with k = min(count, Q - 1).
    """
    probs = predicate_probs[:, 1:]
    if count is None:
        classes = jnp.arange(1, predicate_probs.shape[1], dtype=jnp.int32)
        return PairPredicates(probs, jnp.broadcast_to(classes, probs.shape))
    probs, classes = jax.lax.top_k(probs, min(count, probs.shape[1]))
    return PairPredicates(probs, classes.astype(jnp.int32) + 1)


def ranked_pairs(pairs: Pairs, objects: Objects, ranking: Ranking):
    """(N,) bool: the pairs whose triplets are listed; object NMS has removed some objects."""
    mask = pairs.mask & (objects.slot[pairs.subjects] >= 0) & (objects.slot[pairs.objects] >= 0)
    return mask if ranking.self_pairs else mask & (pairs.subjects != pairs.objects)


def triplet_scores(predicates: PairPredicates, pairs: Pairs, objects: Objects, ranking: Ranking):
    """(N, k) float32 by which triplets are ranked, -1 for what is not listed.

    Rows of `predicates` where `pairs.mask` is False may hold anything.
    """
    scores = predicates.probs
    if not ranking.predicate_only:
        # In this order: neighbours in the ranking can be one float apart.
        scores = scores * objects.scores[objects.slot[pairs.subjects]][:, None]
        scores = scores * objects.scores[objects.slot[pairs.objects]][:, None]
    return jnp.where(ranked_pairs(pairs, objects, ranking)[:, None], scores, -1.0)


def rank_triplets(
    predicates: PairPredicates,
    pairs: Pairs,
    objects: Objects,
    ranking: Ranking,
    above: float | jax.Array = -1.0,
) -> Triplets:
    """Ranks the triplets of all pairs, then thins them by triplet NMS.

    Equal scores rank by lowest pair, then by the order of its predicates.

    Args:
      predicates: of the N pairs.
      pairs: their indices are regions of interest, before object NMS.
      objects: decoded objects.
      ranking: what to list.
      above: only triplets with a higher score take part: a prefix of the whole list.
    """
    scores = triplet_scores(predicates, pairs, objects, ranking)  # (N, k)
    top, order = jax.lax.top_k(scores.reshape(-1), min(ranking.max_candidates, scores.size))
    pair, rank_in_pair = jnp.divmod(order, scores.shape[1])
    # Regions of interest without an object have the slot -1: they are masked, but indexed.
    subjects = jnp.maximum(objects.slot[pairs.subjects[pair]], 0)
    others = jnp.maximum(objects.slot[pairs.objects[pair]], 0)
    classes = predicates.classes[pair, rank_in_pair]
    mask = top > above
    slots = min(ranking.max_triplets, top.size)
    if ranking.triplet_threshold is None:
        chosen, used = jnp.arange(slots), mask[:slots]
    else:
        kept = triplet_nms(
            objects.boxes[subjects],
            objects.boxes[others],
            objects.classes[subjects],
            classes,
            objects.classes[others],
            ranking.triplet_threshold,
            slots,
            mask=mask,
        )
        chosen, used = kept.indices, kept.mask
    return Triplets(
        subjects=jnp.where(used, subjects[chosen], 0),
        objects=jnp.where(used, others[chosen], 0),
        predicates=jnp.where(used, classes[chosen], 0),
        scores=jnp.where(used, top[chosen], 0.0),
        mask=used,
    )
