"""Greedy non-maximum suppression: of boxes, of boxes within a class, of triplets.

One core serves all three. It walks the candidates in rank order in blocks: a block is first
compared with everything kept so far, then settled within itself, and the walk stops as soon as
enough are kept. That is exactly the greedy rule (keep a candidate unless an earlier *kept* one
suppresses it), without an N x N matrix.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnet_jax.kernels.boxes import intersection_and_union

# Candidates settled at a time: long enough to vectorise, short enough to stop early.
_BLOCK = 256


class Kept(NamedTuple):
    """What a suppression kept, in rank order.

    Attributes:
      indices: `[max_output]` int32 into the inputs; 0 in unused slots.
      mask: `[max_output]` bool, True where a slot is used; used slots come first.
    """

    indices: jax.Array
    mask: jax.Array


class _Candidates(NamedTuple):
    """Candidates column by column, so that comparing two sets vectorises over the last axis.

    Attributes:
      corners: `[4 * B, N]` float32, `B` boxes a candidate, each x1, y1, x2, y2.
      labels: `[L, N]` int32; only candidates with equal labels suppress each other.
    """

    corners: jax.Array
    labels: jax.Array


def nms(
    boxes: jax.Array,
    scores: jax.Array | None,
    iou_threshold: float,
    max_output: int,
    *,
    mask: jax.Array | None = None,
    implementation: str | None = None,
) -> Kept:
    """Greedy NMS: a box is dropped if a kept box of higher score overlaps it too much.

    Args:
      boxes: `[N, 4]` float32 inclusive pixels. Empty boxes neither suppress nor are suppressed.
      scores: `[N]` float32; equal scores rank by lowest index. None if the boxes are in rank order
        already, as after `top_k`: sorting them again takes longer than suppressing them.
      iou_threshold: suppression at IoU **>** this, in [0, 1].
      max_output: static number of slots; the best `max_output` survivors are returned.
      mask: `[N]` bool, True for valid boxes (default: all).
      implementation: "xla", or "pallas" for the one kernel of `pallas_nms.py`; both keep the same
        boxes. None takes the backend's own, which is "xla" everywhere until the other is timed.

    Returns:
      `Kept`, by descending score.

    Raises:
      ValueError: for another `implementation`.
    """
    if implementation not in (None, "xla", "pallas"):
        raise ValueError(f'implementation is "xla" or "pallas", not {implementation!r}')
    candidates = _Candidates(boxes.T, labels=jnp.zeros((0, boxes.shape[0]), jnp.int32))
    if implementation != "pallas":
        return _suppress(candidates, scores, mask, iou_threshold, max_output)
    # Imported only here, so that the rest does without Pallas.
    from fnet_jax.kernels import pallas_nms

    ranked, order, mask = _rank(candidates, scores, mask)
    kept = pallas_nms.suppress_ranked(ranked.corners, order, mask, iou_threshold, max_output)
    return Kept(*kept)


def class_aware_nms(
    boxes: jax.Array,
    scores: jax.Array,
    classes: jax.Array,
    iou_threshold: float,
    max_output: int,
    *,
    mask: jax.Array | None = None,
) -> Kept:
    """`nms` in which only boxes of the same class (`classes [N]` int32) suppress each other."""
    candidates = _Candidates(boxes.T, classes[None])
    return _suppress(candidates, scores, mask, iou_threshold, max_output)


def triplet_nms(
    subject_boxes: jax.Array,
    object_boxes: jax.Array,
    subject_classes: jax.Array,
    predicates: jax.Array,
    object_classes: jax.Array,
    iou_threshold: float,
    max_output: int,
    *,
    mask: jax.Array | None = None,
) -> Kept:
    """NMS of triplets that are already in rank order.

    A triplet is dropped if an earlier kept one has the same subject class, predicate and object
    class, and *both* its boxes overlap at IoU > `iou_threshold`.

    Args:
      subject_boxes, object_boxes: `[N, 4]` float32.
      subject_classes, predicates, object_classes: `[N]` int32.
      iou_threshold, max_output, mask: as in `nms`.
    """
    candidates = _Candidates(
        jnp.concatenate([subject_boxes.T, object_boxes.T]),
        jnp.stack([subject_classes, predicates, object_classes]),
    )
    return _suppress(candidates, None, mask, iou_threshold, max_output)


def _suppress(candidates, scores, mask, iou_threshold, max_output) -> Kept:
    """Suppress candidates in rank order."""
    ranked, order, mask = _rank(candidates, scores, mask)
    return _greedy(ranked, order, mask, _overlap_predicate(iou_threshold), max_output)


def _rank(candidates, scores, mask):
    """Candidates by descending score (None: as they come), their indices `[N]`, and their mask."""
    count = candidates.corners.shape[1]
    if mask is None:
        mask = jnp.ones(count, bool)
    indices = jnp.arange(count, dtype=jnp.int32)
    if scores is None:
        return candidates, indices, mask
    key = jnp.where(mask, -scores, jnp.inf)  # masked ones last: the walk ends before them
    _, order = jax.lax.sort_key_val(key, indices, is_stable=True)
    return jax.tree.map(lambda column: column[:, order], candidates), order, mask[order]


def _overlap_predicate(iou_threshold: float) -> Callable[[Any, Any], jax.Array]:
    """Elementwise "a suppresses b": equal labels, and every box overlaps at IoU > threshold."""

    def suppresses(a: _Candidates, b: _Candidates) -> jax.Array:
        result = jnp.ones((), bool)
        for label_a, label_b in zip(a.labels, b.labels, strict=True):
            result &= label_a == label_b
        for first in range(0, len(a.corners), 4):
            box = slice(first, first + 4)
            intersection, union = intersection_and_union(a.corners[box], b.corners[box])
            result &= intersection > iou_threshold * union
        return result

    return suppresses


def _greedy(candidates, indices, mask, suppresses, max_output: int) -> Kept:
    """Greedy suppression of candidates in rank order.

    Args:
      candidates: pytree of `[columns, N]` arrays.
      indices: `[N]` int32, what to report of each candidate kept.
      mask: `[N]` bool.
      suppresses: elementwise predicate of two such pytrees without the last axis.
      max_output: number of slots.
    """
    count = mask.shape[0]
    block = min(_BLOCK, count)
    if not block or not max_output:
        return Kept(jnp.zeros(max_output, jnp.int32), jnp.zeros(max_output, bool))
    # A block lies together in memory. Sliced out of long rows, XLA on CPUs would compare its pairs
    # one at a time instead of in vectors.
    blocks = jax.tree.map(lambda x: _split(x, block), (candidates, indices, mask))
    # Blocks up to the last valid candidate: the walk need not go further.
    occupied = jnp.any(blocks[-1], axis=1)
    end = jnp.max(jnp.where(occupied, jnp.arange(1, len(occupied) + 1, dtype=jnp.int32), 0))
    lane = jnp.arange(block, dtype=jnp.int32)
    earlier = lane[:, None] < lane[None, :]
    # Whole blocks of kept candidates are compared, so the buffer is a multiple of a block, and one
    # block longer than the slots so that the last block of survivors fits whole.
    slots = (-(-max_output // block) + 1) * block

    def all_pairs(a, b):
        """`[a, b]`: does a suppress b? Reduced over the first axis, this vectorises over b."""
        a, b = jax.tree.map(lambda x: x[:, :, None], a), jax.tree.map(lambda x: x[:, None], b)
        return suppresses(a, b)

    def walk_on(state):
        number, kept_count, _, _ = state
        return (number < end) & (kept_count < max_output)

    def walk(state):
        number, kept_count, kept, kept_indices = state
        new, new_indices, alive = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), blocks
        )

        def against_kept(i, alive):
            old = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, i * block, block, axis=-1), kept
            )
            used = i * block + lane < kept_count
            return alive & ~jnp.any(all_pairs(old, new) & used[:, None], axis=0)

        alive = jax.lax.fori_loop(0, -(-kept_count // block), against_kept, alive)

        # Within the block: iterate "alive unless an earlier kept one suppresses" to its only fixed
        # point, the greedy answer. Round k settles at least the first k candidates.
        inside = all_pairs(new, new) & earlier

        def settle(state):
            _, keep = state
            return keep, alive & ~jnp.any(inside & keep[:, None], axis=0)

        first = alive & ~jnp.any(inside & alive[:, None], axis=0)
        _, keep = jax.lax.while_loop(lambda s: jnp.any(s[0] != s[1]), settle, (alive, first))

        # Survivors move to the front of the block, and the block to the end of the kept list.
        # What lies behind them is overwritten later or masked by `kept_count`.
        slot = kept_count + jnp.cumsum(keep, dtype=jnp.int32) - 1
        slot = jnp.where(keep, slot, slots)
        kept = jax.tree.map(lambda k, x: k.at[:, slot].set(x, mode="drop"), kept, new)
        kept_indices = kept_indices.at[slot].set(new_indices, mode="drop")
        return number + 1, kept_count + jnp.sum(keep, dtype=jnp.int32), kept, kept_indices

    kept = jax.tree.map(lambda x: jnp.zeros((x.shape[0], slots), x.dtype), candidates)
    zero = jnp.zeros((), jnp.int32)
    state = (zero, zero, kept, jnp.zeros(slots, jnp.int32))
    _, kept_count, _, kept_indices = jax.lax.while_loop(walk_on, walk, state)
    used = jnp.arange(max_output, dtype=jnp.int32) < kept_count
    return Kept(jnp.where(used, kept_indices[:max_output], 0), used)


def _split(x: jax.Array, block: int) -> jax.Array:
    """`[..., N]` -> `[blocks, ..., block]`, the last block filled up with zeros."""
    *leading, count = x.shape
    blocks = -(-count // block)
    x = jnp.pad(x, [(0, 0)] * len(leading) + [(0, blocks * block - count)])
    return jnp.moveaxis(x.reshape(*leading, blocks, block), -2, 0)
