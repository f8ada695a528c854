"""The training objective of one image: forward pass, target sampling and losses in one function."""

import dataclasses

import jax
import jax.numpy as jnp

from fnet_jax import losses, targets
from fnet_jax.detect import ProposalOptions, normalise, valid_sizes
from fnet_jax.kernels import cluster_pairs
from fnet_jax.model import FactorizableNet
from fnet_jax.rpn import propose
from fnet_jax.structures import ObjectTargets, PairTargets, Proposals
from fnet_jax.subgraphs import pairs_of, with_smallest_capacity


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Everything that an update step can be told about its objective; the published values."""

    proposals: ProposalOptions = dataclasses.field(
        default_factory=lambda: ProposalOptions(post_nms=2000, nms_threshold=0.7)
    )
    anchors: targets.AnchorOptions = dataclasses.field(default_factory=targets.AnchorOptions)
    samples: targets.SampleOptions = dataclasses.field(default_factory=targets.SampleOptions)
    loss_weights: losses.LossWeights = dataclasses.field(default_factory=losses.LossWeights)
    object_weights: tuple[float, ...] | None = None  # (C,) weights of the object cross-entropy
    predicate_weights: tuple[float, ...] | None = None  # (Q,)
    subgraph_capacities: tuple[int, ...] = (256, 512, 1024)
    subgraph_nms: float = 0.5
    duplicate_removal: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def graph_losses(
    model: FactorizableNet,
    params,
    features,
    map_size,
    object_targets: ObjectTargets,
    pair_targets: PairTargets,
    clusters,
    dropout_key,
    options: TrainOptions,
) -> dict:
    """Loss terms of objects, predicates and duplicates for sampled targets.

    Args:
      model, params: the network.
      features: (h, w, channels) float32.
      map_size: valid (height, width) of the map.
      object_targets, pair_targets: what was sampled.
      clusters: subgraphs of all pairs of the sampled objects.
      dropout_key: JAX key of grouped dropout.
      options: class weights, capacities.
    """
    pairs = pairs_of(clusters, pair_targets.subjects, pair_targets.objects, pair_targets.mask)
    # Each apply counts its random draws from the start: one key for all would repeat masks.
    object_key, graph_key, predicate_key = jax.random.split(dropout_key, 3)
    vectors = model.apply(
        {"params": params},
        features,
        map_size,
        object_targets.boxes,
        train=True,
        rngs={"dropout": object_key},
        method=model.embed_objects,
    )

    def run(boxes, incidence):
        outputs = model.apply(
            {"params": params},
            vectors,
            features,
            map_size,
            object_targets.boxes,
            object_targets.mask,
            boxes,
            incidence,
            train=True,
            rngs={"dropout": graph_key},
            method=model.graph,
        )
        predicate_logits = model.apply(
            {"params": params},
            outputs,
            pairs.subjects,
            pairs.objects,
            pairs.subgraphs,
            train=True,
            rngs={"dropout": predicate_key},
            method=model.predicates,
        )
        return outputs.object_logits, outputs.box_deltas, outputs.objects, predicate_logits

    object_logits, box_deltas, vectors, predicate_logits = with_smallest_capacity(
        run, clusters, options.subgraph_capacities
    )
    terms = losses.object_losses(object_logits, box_deltas, object_targets, options.object_weights)
    # A pair that lost its subgraph to an overflow teaches nothing.
    placed = dataclasses.replace(pair_targets, mask=pairs.mask)
    terms |= losses.predicate_loss(predicate_logits, placed, options.predicate_weights)
    if options.duplicate_removal:
        probability = losses.label_probability(object_logits, object_targets.labels)
        # Training shows duplicate removal the vectors before ReLU, detection after it.
        factor = model.apply(
            {"params": params},
            vectors,
            jax.lax.stop_gradient(probability),
            object_targets.boxes,
            object_targets.mask,
            method=model.duplicate_factor,
        )
        terms |= losses.duplicate_loss(probability, factor, object_targets)
    return terms


def training_losses(
    model: FactorizableNet,
    params,
    example: dict,
    key,
    options: TrainOptions,
    *,
    rpn_loss: bool = True,
    graph_loss: bool = True,
    frozen_layers: int = 4,
):
    """Samples targets for one image and measures every loss term.

    Args:
      model, params: the network.
      example: `image` (H, W, 3) uint8, `im_info` (5,), `gt_boxes` (G, 4), `gt_classes` (G,) (0 =
        unused), `gt_relationships` (G, G).
      key: JAX key; the same key draws the same targets.
      options: static.
      rpn_loss, graph_loss: which halves of the objective are measured.
      frozen_layers: leading VGG16 convolutions that no gradient reaches.

    Returns: (total, report); `report` holds every loss term and the diagnostics `num_subgraphs`,
      `overflow`, `foreground_objects` and `foreground_pairs`, all () float32.
    """
    im_info, gt_boxes, gt_classes = example["im_info"], example["gt_boxes"], example["gt_classes"]
    size, map_size = valid_sizes(im_info)
    image = normalise(example["image"], size, options.mean, options.std)
    variables = {"params": params}
    key_anchors, key_objects, key_pairs, key_dropout = jax.random.split(key, 4)

    features = model.apply(
        variables, image, size, frozen_layers=frozen_layers, method=model.features
    )
    logits, deltas = model.apply(variables, features, method=model.rpn_outputs)
    terms, diagnostics = {}, {}
    if rpn_loss:
        anchor_targets = targets.anchor_labels(
            model.base_anchors,
            features.shape[:2],
            map_size,
            im_info,
            gt_boxes,
            gt_classes > 0,
            options.anchors,
        )
        anchor_targets = targets.sample_anchors(key_anchors, anchor_targets, options.anchors)
        terms |= losses.rpn_losses(logits, deltas, anchor_targets)
    if graph_loss:
        # Proposals are data to the rest of the network: no gradient flows back through boxes.
        foreground = jax.nn.softmax(jax.lax.stop_gradient(logits), axis=2)[:, :, 1]
        proposals: Proposals = propose(
            foreground,
            jax.lax.stop_gradient(deltas),
            model.base_anchors,
            im_info,
            map_size,
            **dataclasses.asdict(options.proposals),
        )
        objects = targets.sample_objects(
            key_objects, proposals, gt_boxes, gt_classes, options.samples
        )
        pairs = targets.sample_pairs(
            key_pairs, objects, example["gt_relationships"], options.samples
        )
        clusters = cluster_pairs(
            objects.boxes,
            objects.scores,
            options.subgraph_nms,
            options.subgraph_capacities[-1],
            mask=objects.mask,
        )
        terms |= graph_losses(
            model, params, features, map_size, objects, pairs, clusters, key_dropout, options
        )
        diagnostics = {
            "num_subgraphs": clusters.count,
            "overflow": clusters.overflow,
            "foreground_objects": jnp.sum(objects.labels > 0),
            "foreground_pairs": jnp.sum(pairs.labels > 0),
        }
    total = losses.weighted_total(terms, options.loss_weights)
    diagnostics = {name: value.astype(jnp.float32) for name, value in diagnostics.items()}
    return total, terms | {"total": total} | diagnostics
