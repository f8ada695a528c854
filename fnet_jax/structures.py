"""Arrays with names: what the rooms of the model hand to each other.

Shape letters, used everywhere: R objects, K subgraph slots, N pairs, G annotated objects, T ranked
triplets, M proposals, P pool size, C object classes and Q predicate classes (both with background
0), A anchors per cell, D feature dims. Sizes are static; a boolean `mask` says which slots are in
use, and used slots always come first.
"""

import flax.struct
import jax


@flax.struct.dataclass
class Proposals:
    """Ranked object candidates of one image."""

    boxes: jax.Array  # (M, 4) float32, resized-image pixels
    scores: jax.Array  # (M,) float32 foreground probability, descending
    mask: jax.Array  # (M,) bool


@flax.struct.dataclass
class Pairs:
    """Ordered (subject, object) pairs and the subgraph each belongs to."""

    subjects: jax.Array  # (N,) int32, index of an object
    objects: jax.Array  # (N,) int32
    subgraphs: jax.Array  # (N,) int32, index of a subgraph
    mask: jax.Array  # (N,) bool


@flax.struct.dataclass
class AnchorTargets:
    """What the RPN should say of every anchor; row, column, anchor order."""

    labels: jax.Array  # (h*w*A,) int32: 1 object, 0 background, -1 ignored
    deltas: jax.Array  # (h*w*A, 4) float32 normalised box deltas


@flax.struct.dataclass
class ObjectTargets:
    """Sampled proposals and their labels; foreground first, by descending overlap."""

    boxes: jax.Array  # (R, 4) float32
    scores: jax.Array  # (R,) float32 objectness
    mask: jax.Array  # (R,) bool
    labels: jax.Array  # (R,) int32, 0 = background
    deltas: jax.Array  # (R, 4) float32 normalised box deltas (foreground rows)
    gt_index: jax.Array  # (R,) int32, the annotated object it overlaps most
    first: jax.Array  # (R,) bool, the best foreground proposal of its object: not a duplicate


@flax.struct.dataclass
class PairTargets:
    """Sampled ordered pairs and their predicates; annotated ones first."""

    subjects: jax.Array  # (N,) int32
    objects: jax.Array  # (N,) int32
    labels: jax.Array  # (N,) int32, 0 = no relationship
    mask: jax.Array  # (N,) bool


@flax.struct.dataclass
class Triplets:
    """Ranked triplets; `subjects` and `objects` index the object slots."""

    subjects: jax.Array  # (T,) int32
    objects: jax.Array  # (T,) int32
    predicates: jax.Array  # (T,) int32
    scores: jax.Array  # (T,) float32
    mask: jax.Array  # (T,) bool


@flax.struct.dataclass
class PaddedGraph:
    """The scene graph of one image in static shapes: objects, and triplets, most certain first."""

    boxes: jax.Array  # (R, 4) float32, original-image pixels
    scores: jax.Array  # (R,) float32, class probability x duplicate factor
    classes: jax.Array  # (R,) int32
    object_mask: jax.Array  # (R,) bool
    subjects: jax.Array  # (T,) int32, index of an object
    objects: jax.Array  # (T,) int32
    predicates: jax.Array  # (T,) int32
    triplet_scores: jax.Array  # (T,) float32, descending
    triplet_mask: jax.Array  # (T,) bool
    class_probs: jax.Array  # (R, C) float32, before duplicate removal and object NMS
    class_boxes: jax.Array  # (R, C, 4) float32, original-image pixels, one box per class
    roi_mask: jax.Array  # (R,) bool, which rows of class_probs are in use
    proposals: jax.Array  # (M, 4) float32, original-image pixels, ranked
    proposal_mask: jax.Array  # (M,) bool
    num_subgraphs: jax.Array  # () int32
    overflow: jax.Array  # () int32, ordered pairs that found no subgraph slot
    # Rankings by the rules of the SGB protocol, where asked for: the best predicate of each pair,
    # and all predicates of all pairs; by the product of the three scores.
    constrained: Triplets | None = None
    unconstrained: Triplets | None = None
    inferred_pairs: jax.Array | None = None  # () int32, pairs that the ranking had to look at
