"""Which objects, pairs and subgraphs an image has.

F-Net, sec. 3.2: factorized connection graph.
"""

import jax
import jax.numpy as jnp

from fnet_jax.kernels import PairClusters, pairwise_iou
from fnet_jax.structures import Pairs, Proposals


def keep_best(proposals: Proposals, count: int) -> Proposals:
    """The first `count` slots; proposals are ranked already."""
    return jax.tree.map(lambda x: x[:count], proposals)


def merge_gt_boxes(proposals: Proposals, gt_boxes, gt_mask, threshold: float = 0.5) -> Proposals:
    """Given boxes first (score 1), then proposals that differ from all of them, cut to as many.

    The overlap test compares (0, x1, y1, x2) as if it were a box, as the published code does: its
    roi rows start with a batch index that the comparison does not skip.

    Args:
      proposals: M ranked proposals.
      gt_boxes: (G, 4) float32; used rows first. No more than M can be kept.
      gt_mask: (G,) bool.
      threshold: proposals that reach this overlap with an annotated box are dropped.

    Returns: Proposals with M slots, at most as many of them used as there were proposals, or given
      boxes if those are more.
    """

    def shifted(boxes):
        return jnp.concatenate([jnp.zeros_like(boxes[:, :1]), boxes[:, :3]], axis=1)

    overlaps = pairwise_iou(shifted(proposals.boxes), shifted(gt_boxes))  # (M, G)
    same = jnp.any((overlaps >= threshold) & gt_mask[None], axis=1)
    boxes = jnp.concatenate([gt_boxes, proposals.boxes])
    scores = jnp.concatenate([jnp.ones(gt_boxes.shape[0], jnp.float32), proposals.scores])
    keep = jnp.concatenate([gt_mask, proposals.mask & ~same])
    slots = proposals.mask.shape[0]
    order = jnp.argsort(~keep, stable=True)[:slots]
    most = jnp.maximum(jnp.sum(proposals.mask), jnp.sum(gt_mask))
    mask = keep[order] & (jnp.arange(slots) < most)
    return Proposals(
        boxes=jnp.where(mask[:, None], boxes[order], 0.0),
        scores=jnp.where(mask, scores[order], 0.0),
        mask=mask,
    )


def pairs_among(clusters: PairClusters, count: int, mask) -> Pairs:
    """All ordered pairs (self-pairs too) of the first `count` objects, subject-major.

    Args:
      clusters: clustering of all pairs.
      count: how many leading objects are paired; N = count**2.
      mask: (count,) bool, which of them are used.
    """
    subjects, objects = jnp.divmod(jnp.arange(count * count, dtype=jnp.int32), count)
    return pairs_of(clusters, subjects, objects, mask[subjects] & mask[objects])


def pairs_of(clusters: PairClusters, subjects, objects, mask) -> Pairs:
    """Looks up the subgraph of chosen pairs; a pair without one (overflow) is masked out."""
    subgraphs = clusters.pair_cluster[subjects, objects]
    return Pairs(
        subjects=subjects,
        objects=objects,
        subgraphs=jnp.maximum(subgraphs, 0),
        mask=mask & (subgraphs >= 0),
    )


def with_smallest_capacity(run, clusters: PairClusters, capacities: tuple[int, ...]):
    """Runs `run(boxes, mask, incidence)` with as few subgraph slots as hold this image's subgraphs.

    Early in training an image has several times the subgraphs it will have later; a branch per
    capacity keeps the program static without paying for the largest size on every image.

    Args:
      run: function of subgraph boxes (k, 4) and incidence (k, R) whose result does not depend in
        shape on k.
      clusters: clustering with capacities[-1] slots.
      capacities: ascending slot counts.
    """

    def branch(k):
        return lambda: run(clusters.boxes[:k], clusters.incidence[:k])

    if len(capacities) == 1:
        return branch(capacities[0])()
    index = jnp.searchsorted(jnp.asarray(capacities[:-1], jnp.int32), clusters.count)
    return jax.lax.switch(index, [branch(k) for k in capacities])
