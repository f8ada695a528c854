"""From pixels to a ranked scene graph: one jitted program, no host round trip inside."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fnet_jax.backbone import feature_size, mask_outside
from fnet_jax.decode import Objects, Ranking, class_boxes, decode_objects
from fnet_jax.kernels import cluster_pairs
from fnet_jax.model import FactorizableNet, GraphOutputs
from fnet_jax.pruning import infer_and_rank
from fnet_jax.rpn import propose
from fnet_jax.structures import PaddedGraph, Proposals
from fnet_jax.subgraphs import keep_best, merge_gt_boxes, pairs_among, with_smallest_capacity


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
    prune_pairs: bool = True  # False infers the predicates of all pairs, for the same graph
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


def graph_of(
    model, params, features, map_size, objects: Proposals, clusters, *, capacities
) -> GraphOutputs:
    """What the network knows of given objects and subgraphs, with `capacities[-1]` slots."""
    vectors = model.apply(
        {"params": params}, features, map_size, objects.boxes, method=model.embed_objects
    )

    def run(boxes, incidence):
        outputs = model.apply(
            {"params": params},
            vectors,
            features,
            map_size,
            objects.boxes,
            objects.mask,
            boxes,
            incidence,
            method=model.graph,
        )
        unused = capacities[-1] - boxes.shape[0]
        padded = jnp.pad(outputs.subgraph_term, ((0, unused), (0, 0), (0, 0), (0, 0)))
        return outputs.replace(subgraph_term=padded)

    return with_smallest_capacity(run, clusters, capacities)


def _with_given_classes(objects: Objects, gt_classes) -> Objects:
    """The leading objects, which are the given ones, get their class, if any, and the score 1."""
    slots = objects.mask.shape[0]
    given = jnp.zeros(slots, jnp.int32).at[: gt_classes.shape[0]].set(gt_classes[:slots])
    return objects.replace(
        classes=jnp.where(given > 0, given, objects.classes),
        scores=jnp.where(given > 0, 1.0, objects.scores),
    )


def _rankings(options: TestOptions, num_pairs: int) -> tuple[Ranking, ...]:
    """F-Net's list, and those of the SGB protocol if they are asked for."""
    fnet = Ranking(
        predicates_per_pair=options.predicates_per_pair,
        max_candidates=options.max_candidates,
        max_triplets=options.max_triplets,
        triplet_threshold=None if options.use_gt_boxes else options.triplet_nms,
        predicate_only=options.use_gt_boxes,
        self_pairs=options.self_pairs,
    )
    if not options.sgb_rankings:
        return (fnet,)
    sgb = dataclasses.replace(fnet, predicate_only=False, self_pairs=False)
    # With given boxes A@K counts on annotated pairs alone, however low they rank.
    longest = num_pairs if options.use_gt_boxes else options.max_triplets
    return (
        fnet,
        dataclasses.replace(sgb, predicates_per_pair=1, max_triplets=longest),
        dataclasses.replace(sgb, predicates_per_pair=None),
    )


def detect(model: FactorizableNet, params, example: dict, options: TestOptions) -> PaddedGraph:
    """The scene graph of one image.

    Args:
      model, params: the network.
      example: `image` (H, W, 3) uint8 (or normalised float32), `im_info` (5,) float32 and, with
        `use_gt_boxes`, `gt_boxes` (G, 4) float32 and `gt_classes` (G,) int32 (0 = unused slot,
        -1 = a box of no given class).
      options: static. `use_gt_labels` (with `use_gt_boxes`) takes the classes as given, too.

    Returns: PaddedGraph, padded to static sizes.
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
        gt_mask = example["gt_classes"] != 0
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
    outputs = graph_of(
        model,
        params,
        features,
        map_size,
        objects,
        clusters,
        capacities=options.subgraph_capacities,
    )
    class_probs = jax.nn.softmax(outputs.object_logits, axis=-1)

    factor = jnp.ones(objects.mask.shape, jnp.float32)
    if options.duplicate_removal:
        # Here the vectors are post-ReLU, in training pre-ReLU: so were the published weights made.
        factor = model.apply(
            {"params": params},
            jax.nn.relu(outputs.objects),
            jnp.max(class_probs[:, 1:], axis=1),
            objects.boxes,
            objects.mask,
            method=model.duplicate_factor,
        )
    if options.use_gt_boxes:
        shape = (*class_probs.shape, 4)
        candidates = jnp.broadcast_to((objects.boxes / im_info[2])[:, None], shape)
    else:
        candidates = class_boxes(objects.boxes, outputs.box_deltas, im_info)
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

    def infer(subjects, others, subgraphs):
        logits = model.apply(
            {"params": params}, outputs, subjects, others, subgraphs, method=model.predicates
        )
        return jax.nn.softmax(logits, axis=-1)

    (triplets, *sgb), inferred = infer_and_rank(
        infer,
        model.num_predicate_classes,
        pairs,
        decoded,
        _rankings(options, pairs.mask.size),
        prune=options.prune_pairs,
    )
    constrained, unconstrained = sgb or (None, None)
    return PaddedGraph(
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
        inferred_pairs=inferred,
        constrained=constrained,
        unconstrained=unconstrained,
    )


def detect_on_devices(model: FactorizableNet, options: TestOptions):
    """`detect` on every local device, one image each: (params, examples) -> PaddedGraph.

    Parameters lie on all devices (`train_step.replicate`); examples and graphs have a leading axis
    of devices. One program is compiled for each size of images.
    """
    run = functools.partial(detect, model, options=options)
    # A nameless axis is named after its address: no cache would know the program again.
    return jax.pmap(run, axis_name="devices", in_axes=(None, 0), devices=jax.local_devices())
