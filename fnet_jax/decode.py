"""Reads the graph off: object boxes and classes, then ranked, thinned triplets."""

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


def rank_triplets(
    predicate_probs,
    pairs: Pairs,
    objects: Objects,
    *,
    predicates_per_pair: int,
    max_candidates: int,
    max_triplets: int,
    triplet_threshold: float | None,
    predicate_only: bool,
) -> Triplets:
    """The best predicates of every pair, ranked by the product of the three scores, then thinned.

    Args:
      predicate_probs: (N, Q) float32.
      pairs: the N pairs; their indices are regions of interest, before object NMS.
      objects: decoded objects.
      predicates_per_pair: best non-background predicates of a pair (at most Q - 1).
      max_candidates: triplets that enter triplet NMS.
      max_triplets: T.
      triplet_threshold: a better triplet of the same three classes removes those whose both boxes
        overlap its own by more; None switches triplet NMS off.
      predicate_only: rank by the predicate probability alone (ground-truth boxes).
    """
    per_pair = min(predicates_per_pair, predicate_probs.shape[1] - 1)
    probs, predicates = jax.lax.top_k(predicate_probs[:, 1:], per_pair)  # (N, per_pair)
    subjects, others = objects.slot[pairs.subjects], objects.slot[pairs.objects]  # (N,)
    valid = pairs.mask & (subjects >= 0) & (others >= 0)
    scores = probs
    if not predicate_only:
        # In this order: neighbours in the ranking can be one float apart.
        scores = probs * objects.scores[subjects][:, None] * objects.scores[others][:, None]
    flat = jnp.where(valid[:, None], scores, -1.0).reshape(-1)
    top, order = jax.lax.top_k(flat, min(max_candidates, flat.size))
    pair = order // per_pair
    subjects, others = jnp.maximum(subjects[pair], 0), jnp.maximum(others[pair], 0)
    predicates = predicates.reshape(-1)[order].astype(jnp.int32) + 1
    mask = top >= 0.0
    slots = min(max_triplets, top.size)
    if triplet_threshold is None:
        chosen, used = jnp.arange(slots), mask[:slots]
    else:
        kept = triplet_nms(
            objects.boxes[subjects],
            objects.boxes[others],
            objects.classes[subjects],
            predicates,
            objects.classes[others],
            triplet_threshold,
            slots,
            mask=mask,
        )
        chosen, used = kept.indices, kept.mask
    return Triplets(
        subjects=jnp.where(used, subjects[chosen], 0),
        objects=jnp.where(used, others[chosen], 0),
        predicates=jnp.where(used, predicates[chosen], 0),
        scores=jnp.where(used, top[chosen], 0.0),
        mask=used,
    )
