"""Clustering of relationship candidates into subgraphs: NMS that remembers the keeper.

F-Net, sec. 3.2: the union boxes of all R x R object pairs are suppressed greedily by score, and a
suppressed pair shares the subgraph of the box that absorbed it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnet_jax.kernels.boxes import intersection_and_union, union_boxes

# Below this many pairs a smaller array saves nothing.
_SMALL = 256
# Pairs come in multiples of this, so that reductions over them vectorise.
_LANES = 64


class PairClusters(NamedTuple):
    """Clusters of ordered object pairs (i, j), numbered by their representative's `i * R + j`.

    Attributes:
      boxes: `[capacity, 4]` float32, the representative's union box; zeros in unused slots.
      mask: `[capacity]` bool; used slots come first.
      pair_cluster: `[R, R]` int32 (symmetric); -1 for invalid pairs and for overflow.
      incidence: `[capacity, R]` bool: some pair of the cluster has this object.
      count: `[]` int32, clusters found, at most `capacity`.
      overflow: `[]` int32, valid ordered pairs left without a cluster; 0 if capacity sufficed.
    """

    boxes: jax.Array
    mask: jax.Array
    pair_cluster: jax.Array
    incidence: jax.Array
    count: jax.Array
    overflow: jax.Array


class _Pairs(NamedTuple):
    """Union boxes of unordered pairs, P a multiple of `_LANES`."""

    box: jax.Array  # [4, P]
    score: jax.Array  # [P], -inf for invalid pairs and for padding
    code: jax.Array  # [P] int32, i * R + j


class _Progress(NamedTuple):
    """Clusters picked so far, in the order of picking."""

    count: jax.Array  # []
    alive: jax.Array  # [] int32, pairs without a cluster
    box: jax.Array  # [capacity, 4]
    code: jax.Array  # [capacity] of the representatives; R * R in unused slots


def cluster_pairs(
    boxes: jax.Array,
    scores: jax.Array,
    iou_threshold: float,
    capacity: int,
    *,
    mask: jax.Array | None = None,
) -> PairClusters:
    """Cluster the union boxes of all ordered pairs of objects, self-pairs included.

    Greedy: the best pair without a cluster represents a new one, and absorbs every other pair
    without a cluster whose union box overlaps its own at IoU **>=** `iou_threshold`. The score of
    a pair is the float32 product of its objects' scores; equal scores rank by lowest pair index
    `i * R + j`. (i, j) and (j, i) have the same box and score and so always share a cluster: the
    work is done on the distinct pairs i <= j.

    Args:
      boxes: `[R, 4]` float32 inclusive pixels.
      scores: `[R]` float32.
      iou_threshold: in (0, 1].
      capacity: static number of cluster slots. When it is exhausted the remaining pairs get -1
        and are counted in `overflow`.
      mask: `[R]` bool, True for valid objects (default: all); others take part in nothing.
    """
    number = boxes.shape[0]
    if mask is None:
        mask = jnp.ones(number, bool)
    upper = np.array(np.triu_indices(number), np.int32)  # [2, number * (number + 1) / 2]
    count = upper.shape[1]
    first, second = np.pad(upper, ((0, 0), (0, -count % _LANES)))
    valid = mask[first] & mask[second] & (np.arange(len(first)) < count)
    pairs = _Pairs(
        box=union_boxes(boxes[first], boxes[second]).T,
        score=jnp.where(valid, scores[first] * scores[second], -jnp.inf),
        code=jnp.asarray(first * number + second),
    )
    progress = _Progress(
        count=jnp.zeros((), jnp.int32),
        alive=jnp.sum(valid, dtype=jnp.int32),
        box=jnp.zeros((capacity, 4), boxes.dtype),
        code=jnp.full(capacity, number * number, jnp.int32),
    )
    cluster, progress = _absorb(pairs, progress, iou_threshold)

    # Renumber from the order of picking to the order of the representatives' pair index.
    slots = jnp.arange(capacity, dtype=jnp.int32)
    _, order = jax.lax.sort_key_val(progress.code, slots, is_stable=True)
    renumbered = jnp.zeros_like(slots).at[order].set(slots)
    cluster = jnp.where(cluster >= 0, renumbered[cluster], -1)

    lookup = np.zeros((number, number), np.int32)
    lookup[upper[0], upper[1]] = lookup[upper[1], upper[0]] = np.arange(count)
    pair_cluster = cluster[lookup]
    ordered = jnp.where(jnp.asarray(first == second), 1, 2)
    slot = jnp.where(pair_cluster >= 0, pair_cluster, capacity)
    incidence = jnp.zeros((capacity, number), bool)
    incidence = incidence.at[slot, jnp.arange(number, dtype=jnp.int32)].set(True, mode="drop")
    return PairClusters(
        boxes=progress.box[order],
        mask=slots < progress.count,
        pair_cluster=pair_cluster,
        incidence=incidence,
        count=progress.count,
        overflow=jnp.sum(jnp.where(valid & (cluster < 0), ordered, 0), dtype=jnp.int32),
    )


def _absorb(pairs: _Pairs, progress: _Progress, iou_threshold: float):
    """Pick clusters until no pair is left or capacity is exhausted.

    Each pick reads all pairs, and most pairs are gone after a few picks: so once a quarter is left
    the survivors move to a smaller array, and so on.

    Returns:
      (cluster of each pair `[P]` int32 in order of picking or -1, progress).
    """
    size = pairs.score.shape[0]
    capacity = progress.code.shape[0]
    smaller = _round_up(size // 4, _LANES) if size > _SMALL else 0
    lane = jnp.arange(size, dtype=jnp.int32)
    count = functools.partial(jnp.sum, dtype=jnp.int32)

    def score_left(cluster):
        return jnp.where(cluster < 0, pairs.score, -jnp.inf)

    def picking(state):
        _, progress = state
        return (progress.alive > smaller) & (progress.count < capacity)

    def pick(state):
        cluster, progress = state
        score = score_left(cluster)
        # Maximum, then its first place: both reductions vectorise, an argmax does not.
        keeper = _over_all(jnp.min, jnp.where(score == _over_all(jnp.max, score), lane, size - 1))
        box = pairs.box[:, keeper]
        intersection, union = intersection_and_union(box, pairs.box)
        absorbed = (intersection >= iou_threshold * union) & (union > 0.0)
        absorbed = (absorbed | (lane == keeper)) & (score > -jnp.inf)
        return jnp.where(absorbed, progress.count, cluster), _Progress(
            count=progress.count + 1,
            alive=progress.alive - _over_all(count, absorbed),
            box=progress.box.at[progress.count].set(box),
            code=progress.code.at[progress.count].set(pairs.code[keeper]),
        )

    state = (jnp.full(size, -1, jnp.int32), progress)
    cluster, progress = jax.lax.while_loop(picking, pick, state)
    if smaller:
        # They stay in order, for the sake of ties. If fewer are left, the last slots are padding;
        # if capacity ran out early, more are left and all of them keep their -1.
        score = score_left(cluster)
        left = jnp.flatnonzero(score > -jnp.inf, size=smaller, fill_value=size).astype(jnp.int32)
        rest = _Pairs(
            box=pairs.box.at[:, left].get(mode="clip"),
            score=score.at[left].get(mode="fill", fill_value=-jnp.inf),
            code=pairs.code.at[left].get(mode="clip"),
        )
        rest_cluster, progress = _absorb(rest, progress, iou_threshold)
        cluster = cluster.at[left].set(rest_cluster, mode="drop")
    return cluster, progress


def _over_all(reduce: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
    """`reduce(x)` of `x [P]`, P a multiple of `_LANES`.

    XLA on CPUs reduces a vector element by element, but the rows of a matrix in vectors; without
    the barrier it merges the two steps into one again.
    """

    def by_rows(x):
        return reduce(jax.lax.optimization_barrier(reduce(x.reshape(-1, _LANES), axis=0)))

    return jax.lax.platform_dependent(x, cpu=by_rows, default=reduce)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
