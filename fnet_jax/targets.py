"""What training asks of anchors, proposals and pairs.

Drawn from a key, with static shapes, inside the step.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fnet_jax.anchors import shifted_anchors
from fnet_jax.kernels import encode_boxes, pairwise_iou
from fnet_jax.structures import AnchorTargets, ObjectTargets, PairTargets, Proposals


@dataclasses.dataclass(frozen=True)
class AnchorOptions:
    """Which anchors are objects, which background, and how many of each are sampled."""

    negative_overlap: float = 0.3
    positive_overlap: float = 0.7
    allowed_border: float = 128.0
    batch_size: int = 512
    foreground_fraction: float = 0.5


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """How many proposals and pairs a training step looks at."""

    object_batch: int = 256
    object_foreground_fraction: float = 0.5
    object_foreground_overlap: float = 0.5
    object_background_overlap: float = 0.4
    relation_batch: int = 512
    relation_foreground_fraction: float = 0.5


def draw(key, candidates, limit: int):
    """Up to `limit` of the candidates, at random without replacement.

    Args:
      key: JAX key.
      candidates: (N,) bool.
      limit: static number of slots.

    Returns: indices (limit,) int32 and mask (limit,) bool; drawn ones first.
    """
    chance = jnp.where(candidates, jax.random.uniform(key, candidates.shape), -1.0)
    limit_here = min(limit, candidates.shape[0])
    value, index = jax.lax.top_k(chance, limit_here)
    pad = (0, limit - limit_here)
    return jnp.pad(index.astype(jnp.int32), pad), jnp.pad(value >= 0.0, pad)


def anchor_labels(
    base_anchors, map_shape, feature_size, im_info, gt_boxes, gt_mask, options: AnchorOptions
) -> AnchorTargets:
    """Labels all anchors of an image, before sampling.

    An anchor is an object if it overlaps one enough or is an object's best (ties share), background
    if its best overlap is low, otherwise ignored; so are anchors far outside the image.

    Args:
      base_anchors: (A, 4).
      map_shape: static (h, w) of the feature map.
      feature_size: valid (height, width) of the map.
      im_info: (5,) float32.
      gt_boxes: (G, 4) float32, resized-image pixels.
      gt_mask: (G,) bool.
      options: overlaps and border.
    """
    h, w = map_shape
    anchors = shifted_anchors(base_anchors, h, w)  # (N, 4)
    border = options.allowed_border
    cells = (jnp.arange(h) < feature_size[0])[:, None] & (jnp.arange(w) < feature_size[1])
    considered = jnp.repeat(cells.reshape(-1), anchors.shape[0] // (h * w))
    considered &= (anchors[:, 0] >= -border) & (anchors[:, 1] >= -border)
    considered &= (anchors[:, 2] < im_info[1] + border) & (anchors[:, 3] < im_info[0] + border)

    overlaps = pairwise_iou(anchors, gt_boxes)  # (N, G)
    overlaps = jnp.where(considered[:, None] & gt_mask[None], overlaps, -1.0)
    best = jnp.max(overlaps, axis=1)
    best_of_object = jnp.max(overlaps, axis=0)  # (G,)
    is_best = jnp.any((overlaps == best_of_object) & (overlaps > 0.0), axis=1)
    labels = jnp.where(best < options.negative_overlap, 0, -1)
    labels = jnp.where(is_best | (best >= options.positive_overlap), 1, labels)
    deltas = encode_boxes(anchors, gt_boxes[jnp.argmax(overlaps, axis=1)])
    return AnchorTargets(
        labels=jnp.where(considered, labels, -1),
        deltas=jnp.where(considered[:, None] & jnp.any(gt_mask), deltas, 0.0),
    )


def sample_anchors(key, targets: AnchorTargets, options: AnchorOptions) -> AnchorTargets:
    """Ignores all but a random batch of anchors, with at most its share of objects."""
    key_object, key_background = jax.random.split(key)
    limit = int(options.foreground_fraction * options.batch_size)
    index, used = draw(key_object, targets.labels == 1, limit)
    size = targets.labels.shape[0]
    labels = jnp.full(size, -1, jnp.int32)
    labels = labels.at[jnp.where(used, index, size)].set(1, mode="drop")
    index, candidates = draw(key_background, targets.labels == 0, options.batch_size)
    wanted = options.batch_size - jnp.sum(used)
    used = candidates & (jnp.arange(options.batch_size) < wanted)
    labels = labels.at[jnp.where(used, index, size)].set(0, mode="drop")
    return AnchorTargets(labels=labels, deltas=targets.deltas)


def sample_objects(
    key, proposals: Proposals, gt_boxes, gt_classes, options: SampleOptions
) -> ObjectTargets:
    """A batch of proposals: objects first, by descending overlap, then background.

    Proposals between the two overlaps are never drawn, and annotated boxes are not added.

    Args:
      key: JAX key.
      proposals: M candidates.
      gt_boxes: (G, 4) float32, resized-image pixels.
      gt_classes: (G,) int32, 0 = unused slot.
      options: batch sizes and overlaps.
    """
    size = options.object_batch
    overlaps = pairwise_iou(proposals.boxes, gt_boxes)  # (M, G)
    overlaps = jnp.where((gt_classes > 0)[None], overlaps, 0.0)
    best, assigned = jnp.max(overlaps, axis=1), jnp.argmax(overlaps, axis=1).astype(jnp.int32)

    key_object, key_background = jax.random.split(key)
    limit = round(options.object_foreground_fraction * size)
    is_object = proposals.mask & (best >= options.object_foreground_overlap)
    objects, object_used = draw(key_object, is_object, limit)
    order = jnp.argsort(jnp.where(object_used, -best[objects], 1.0), stable=True)
    objects, object_used = objects[order], object_used[order]
    is_background = proposals.mask & (best < options.object_background_overlap)
    others, other_used = draw(key_background, is_background, size)

    # Objects fill the first slots, background the next ones, however many there are of each.
    num_objects = jnp.sum(object_used)
    slots = jnp.arange(size)
    foreground = slots < num_objects
    behind = jnp.clip(slots - num_objects, 0, size - 1)
    index = jnp.where(foreground, jnp.pad(objects, (0, size - limit))[slots], others[behind])
    mask = foreground | other_used[behind]
    gt_index = assigned[index]
    # The first of its object has no earlier foreground slot with the same object.
    earlier = (
        (gt_index[None] == gt_index[:, None]) & foreground[None] & (slots[None] < slots[:, None])
    )
    boxes = jnp.where(mask[:, None], proposals.boxes[index], 0.0)
    return ObjectTargets(
        boxes=boxes,
        scores=jnp.where(mask, proposals.scores[index], 0.0),
        mask=mask,
        labels=jnp.where(foreground, gt_classes[gt_index], 0),
        deltas=jnp.where(foreground[:, None], encode_boxes(boxes, gt_boxes[gt_index]), 0.0),
        gt_index=gt_index,
        first=foreground & ~jnp.any(earlier, axis=1),
    )


def sample_pairs(
    key, targets: ObjectTargets, gt_relationships, options: SampleOptions
) -> PairTargets:
    """A batch of ordered pairs: annotated ones among the objects, the rest random and unlabelled.

    Random pairs are drawn with replacement and are not checked against the annotation; a self-pair
    moves on to the next object. Two proposals of one object are a positive pair if that object is
    related to itself.

    Args:
      key: JAX key.
      targets: the sampled objects.
      gt_relationships: (G, G) int32 predicate of (subject, object), 0 = none.
      options: batch sizes.
    """
    size, num = options.relation_batch, targets.mask.shape[0]
    limit = round(options.relation_foreground_fraction * size)
    key_annotated, key_subject, key_object = jax.random.split(key, 3)
    foreground = targets.labels > 0
    predicates = gt_relationships[targets.gt_index[:, None], targets.gt_index[None]]  # (R, R)
    predicates = jnp.where(foreground[:, None] & foreground[None], predicates, 0).reshape(-1)
    pair, used = draw(key_annotated, predicates > 0, limit)
    count = jnp.sum(targets.mask)
    subjects = jax.random.randint(key_subject, (size,), 0, jnp.maximum(count, 1))
    objects = jax.random.randint(key_object, (size,), 0, jnp.maximum(count, 1))
    objects = jnp.where(subjects == objects, (objects + 1) % jnp.maximum(count, 1), objects)
    pair, used = jnp.pad(pair, (0, size - limit)), jnp.pad(used, (0, size - limit))
    return PairTargets(
        subjects=jnp.where(used, pair // num, subjects),
        objects=jnp.where(used, pair % num, objects),
        labels=jnp.where(used, predicates[pair], 0),
        mask=jnp.broadcast_to(count > 0, (size,)),
    )
