"""From pixels to a ranked scene graph: one jitted program, no host round trip inside."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fnet_jax.backbone import feature_size, mask_outside
from fnet_jax.decode import Objects, class_boxes, decode_objects, rank_triplets
from fnet_jax.kernels import cluster_pairs
from fnet_jax.model import FactorizableNet, GraphOutputs
from fnet_jax.rpn import propose
from fnet_jax.structures import Pairs, Proposals, SceneGraph
from fnet_jax.subgraphs import keep_best, merge_gt_boxes, pairs_among, with_smallest_capacity

# Pairs whose predicates are inferred at once: enough rows for full matrix products, small enough to
# keep the (pairs, P, P, M) intermediate in cache.
PAIR_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class ProposalOptions:
    """How many proposals survive; the fields of `rpn.propose`."""

    pre_nms: int = 12000
    post_nms: int = 300
    nms_threshold: float = 0.6
    min_size: float = 16.0


@dataclasses.dataclass(frozen=True)
class TestOptions:
    """Everything that detection can be told; the defaults are the published ones."""

    proposals: ProposalOptions = ProposalOptions()
    max_objects: int = 200
    subgraph_capacities: tuple[int, ...] = (256, 512, 1024)
    subgraph_nms: float = 0.5
    use_gt_boxes: bool = False
    use_gt_labels: bool = False
    self_pairs: bool = True  # whether an object may be related to itself
    sgb_rankings: bool = False  # also rank triplets as the SGB protocol does
    duplicate_removal: bool = True
    object_nms: float | None = None
    triplet_nms: float | None = 0.4
    predicates_per_pair: int = 10
    max_candidates: int = 10000
    max_triplets: int = 100
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def normalise(image, size, mean, std):
    """(H, W, 3) uint8 -> float32 in units of `std` around `mean`, zero outside the valid size.

    The statistics apply to the channels as they come: the published models saw BGR images through
    RGB statistics. A float image is taken as normalised already.
    """
    if jnp.issubdtype(image.dtype, jnp.floating):
        return image
    x = image.astype(jnp.float32) / 255.0
    x = (x - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
    return mask_outside(x[None], size)[0]


def valid_sizes(im_info):
    """Valid (height, width) of the image and of its feature map, int32."""
    size = im_info[:2].astype(jnp.int32)
    return (size[0], size[1]), feature_size(size[0], size[1])


def all_pair_predicates(model: FactorizableNet, params, outputs: GraphOutputs, pairs: Pairs):
    """Predicate probabilities (N, Q) of all pairs, a chunk of pairs at a time."""
    count = pairs.mask.shape[0]
    chunks = -(-count // PAIR_CHUNK)

    def chunked(x):
        return jnp.pad(x, (0, chunks * PAIR_CHUNK - count)).reshape(chunks, PAIR_CHUNK)

    def probabilities(chunk):
        logits = model.apply({"params": params}, outputs, *chunk, method=model.predicates)
        return jax.nn.softmax(logits, axis=-1)

    chunked_pairs = (chunked(pairs.subjects), chunked(pairs.objects), chunked(pairs.subgraphs))
    probs = jax.lax.map(probabilities, chunked_pairs)
    return probs.reshape(chunks * PAIR_CHUNK, -1)[:count]


def graph_of(
    model, params, features, map_size, objects: Proposals, clusters, pairs: Pairs, *, capacities
):
    """Class and predicate probabilities and boxes of given objects, pairs and subgraphs.

    Returns: (class probabilities (R, C), box deltas (R, C, 4), object vectors (R, D), predicate
    probabilities (N, Q)).
    """

    def run(boxes, incidence):
        outputs = model.apply(
            {"params": params},
            features,
            map_size,
            objects.boxes,
            objects.mask,
            boxes,
            incidence,
            method=model.graph,
        )
        predicates = all_pair_predicates(model, params, outputs, pairs)
        return outputs.object_logits, outputs.box_deltas, outputs.objects, predicates

    logits, deltas, vectors, predicates = with_smallest_capacity(run, clusters, capacities)
    return jax.nn.softmax(logits, axis=-1), deltas, vectors, predicates


def _with_given_classes(objects: Objects, gt_classes) -> Objects:
    """The leading objects, which are the annotated ones, get their class and the score 1."""
    slots = objects.mask.shape[0]
    given = jnp.zeros(slots, jnp.int32).at[: gt_classes.shape[0]].set(gt_classes[:slots])
    return objects.replace(
        classes=jnp.where(given > 0, given, objects.classes),
        scores=jnp.where(given > 0, 1.0, objects.scores),
    )


def detect(model: FactorizableNet, params, example: dict, options: TestOptions) -> SceneGraph:
    """The scene graph of one image.

    Args:
      model, params: the network.
      example: `image` (H, W, 3) uint8 (or normalised float32), `im_info` (5,) float32 and, with
        `use_gt_boxes`, `gt_boxes` (G, 4) float32 and `gt_classes` (G,) int32 (0 = unused slot).
      options: static. `use_gt_labels` (with `use_gt_boxes`) takes the classes as given, too.

    Returns: SceneGraph, padded to static sizes.
    """
    im_info = example["im_info"]
    size, map_size = valid_sizes(im_info)
    image = normalise(example["image"], size, options.mean, options.std)
    features = model.apply({"params": params}, image, size, method=model.features)
    logits, deltas = model.apply({"params": params}, features, method=model.rpn_outputs)
    proposals = propose(
        jax.nn.softmax(logits, axis=2)[:, :, 1],
        deltas,
        model.base_anchors,
        im_info,
        map_size,
        **dataclasses.asdict(options.proposals),
    )
    objects = keep_best(proposals, options.max_objects)
    num_paired = objects.mask.shape[0]
    pairable = objects.mask
    if options.use_gt_boxes:
        gt_mask = example["gt_classes"] > 0
        objects = merge_gt_boxes(objects, example["gt_boxes"], gt_mask)
        num_paired = min(num_paired, gt_mask.shape[0])
        pairable = gt_mask[:num_paired] & objects.mask[:num_paired]

    clusters = cluster_pairs(
        objects.boxes,
        objects.scores,
        options.subgraph_nms,
        options.subgraph_capacities[-1],
        mask=objects.mask,
    )
    pairs = pairs_among(clusters, num_paired, pairable)
    class_probs, box_deltas, vectors, predicate_probs = graph_of(
        model,
        params,
        features,
        map_size,
        objects,
        clusters,
        pairs,
        capacities=options.subgraph_capacities,
    )

    factor = jnp.ones(objects.mask.shape, jnp.float32)
    if options.duplicate_removal:
        # Here the vectors are post-ReLU, in training pre-ReLU: so were the published weights made.
        factor = model.apply(
            {"params": params},
            jax.nn.relu(vectors),
            jnp.max(class_probs[:, 1:], axis=1),
            objects.boxes,
            objects.mask,
            method=model.duplicate_factor,
        )
    if options.use_gt_boxes:
        shape = (*class_probs.shape, 4)
        candidates = jnp.broadcast_to((objects.boxes / im_info[2])[:, None], shape)
    else:
        candidates = class_boxes(objects.boxes, box_deltas, im_info)
    # Given boxes are taken as they are: neither kind of NMS applies to them.
    decoded = decode_objects(
        class_probs,
        factor,
        candidates,
        objects.mask,
        object_nms=None if options.use_gt_boxes else options.object_nms,
    )
    if options.use_gt_labels:
        decoded = _with_given_classes(decoded, example["gt_classes"])
    rank = functools.partial(
        rank_triplets,
        predicate_probs,
        objects=decoded,
        max_candidates=options.max_candidates,
        max_triplets=options.max_triplets,
        triplet_threshold=None if options.use_gt_boxes else options.triplet_nms,
    )
    others = pairs.replace(mask=pairs.mask & (pairs.subjects != pairs.objects))
    triplets = rank(
        pairs if options.self_pairs else others,
        predicates_per_pair=options.predicates_per_pair,
        predicate_only=options.use_gt_boxes,
    )
    constrained = unconstrained = None
    if options.sgb_rankings:
        # With given boxes A@K counts on annotated pairs alone, however low they rank.
        longest = others.mask.size if options.use_gt_boxes else options.max_triplets
        constrained = rank(
            others, predicates_per_pair=1, predicate_only=False, max_triplets=longest
        )
        unconstrained = rank(
            others, predicates_per_pair=predicate_probs.shape[1] - 1, predicate_only=False
        )
    return SceneGraph(
        boxes=decoded.boxes,
        scores=decoded.scores,
        classes=decoded.classes,
        object_mask=decoded.mask,
        subjects=triplets.subjects,
        objects=triplets.objects,
        predicates=triplets.predicates,
        triplet_scores=triplets.scores,
        triplet_mask=triplets.mask,
        class_probs=class_probs,
        class_boxes=candidates,
        roi_mask=objects.mask,
        proposals=proposals.boxes / im_info[2],
        proposal_mask=proposals.mask,
        num_subgraphs=clusters.count,
        overflow=clusters.overflow,
        constrained=constrained,
        unconstrained=unconstrained,
    )
