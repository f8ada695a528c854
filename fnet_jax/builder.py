"""From a config and a dataset's class names to a model and its options.

The only reader of the config besides the training and evaluation loops.
"""

import pathlib

import numpy as np

from fnet_jax.anchors import REFERENCE_SCALE, base_anchors, normal_anchors, read_kmeans_anchors
from fnet_jax.detect import ProposalOptions, TestOptions
from fnet_jax.errors import UserError
from fnet_jax.layers import DROPOUT_GROUPS
from fnet_jax.losses import LossWeights
from fnet_jax.model import FactorizableNet
from fnet_jax.objective import TrainOptions
from fnet_jax.targets import AnchorOptions, SampleOptions

# The largest cut-off of all protocols.
MIN_TRIPLETS = 100


def _choice(field: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UserError(f"config.{field} is {value!r}; it must be one of {', '.join(allowed)}")
    return value


def anchors_from_config(config, dataset_file: pathlib.Path | None = None) -> np.ndarray:
    """(A, 4) float32 base anchors; k-means scales follow the test scale.

    `dataset_file` is the dataset's own file, which counts if it exists and no other is named.
    """
    kind = _choice("anchors.kind", config.anchors.kind, ("kmeans", "normal"))
    if kind == "normal":
        return base_anchors(*normal_anchors())
    scales, ratios = config.anchors.scales, config.anchors.ratios
    if config.anchors.file:
        scales, ratios = read_kmeans_anchors(config.anchors.file)
    elif dataset_file is not None and dataset_file.is_file():
        scales, ratios = read_kmeans_anchors(dataset_file)
    if len(scales) != len(ratios) or not len(scales) or min(*scales, *ratios) <= 0:
        raise UserError(
            "config.anchors.scales and config.anchors.ratios must be equally many positive "
            f"numbers, not {tuple(scales)} and {tuple(ratios)}"
        )
    scales = np.asarray(scales, np.float64) / REFERENCE_SCALE * config.image.test_scale
    return base_anchors(scales, ratios)


def build_model(
    config,
    num_object_classes: int,
    num_predicate_classes: int,
    anchors_file: pathlib.Path | None = None,
) -> FactorizableNet:
    """The network that a config describes; class counts include the background.

    `anchors_file` is as `dataset_file` of `anchors_from_config`.

    Raises UserError for a value that no model can have.
    """
    m = config.model
    if len(m.vgg_widths) != 13:
        raise UserError(f"config.model.vgg_widths needs 13 numbers, not {len(m.vgg_widths)}")
    # Eight sinusoid blocks share the relation modules' dimensions.
    for name, dim in (("dim_object", m.dim_object), ("dim_attention", m.dim_attention)):
        if dim % 16:
            raise UserError(f"config.model.{name} is {dim}; it must be a multiple of 16")
    if m.dim_subgraph != m.dim_object:
        raise UserError(
            f"config.model.dim_subgraph is {m.dim_subgraph}; messages add object and subgraph "
            f"vectors, so it must equal config.model.dim_object ({m.dim_object})"
        )
    if m.dropout and (m.dim_attention // 2 if m.bottleneck else m.dim_attention) % DROPOUT_GROUPS:
        raise UserError(
            f"config.model.dim_attention is {m.dim_attention}; grouped dropout needs its layers to "
            f"be multiples of {DROPOUT_GROUPS}"
        )
    largest = max(config.test.max_objects, config.train.object_batch)
    if largest > m.rank_embeddings:
        raise UserError(
            f"config.model.rank_embeddings is {m.rank_embeddings}, but {largest} objects are asked "
            "for by config.test.max_objects or config.train.object_batch"
        )
    return FactorizableNet(
        num_object_classes=num_object_classes,
        num_predicate_classes=num_predicate_classes,
        base_anchors=tuple(
            tuple(map(float, row)) for row in anchors_from_config(config, anchors_file)
        ),
        vgg_widths=tuple(m.vgg_widths),
        dim_rpn=m.dim_rpn,
        pool_size=m.pool_size,
        dim_object=m.dim_object,
        dim_subgraph=m.dim_subgraph,
        dim_predicate=m.dim_predicate,
        dim_attention=m.dim_attention,
        message_passing_steps=m.message_passing_steps,
        relation_module=m.relation_module,
        geometry=_choice("model.geometry", m.geometry, ("v1", "v2")),
        fusion=_choice("model.fusion", m.fusion, ("sum", "prod", "sum_prod")),
        bottleneck=m.bottleneck,
        use_bias=m.use_bias,
        dropout=m.dropout,
        rank_embeddings=m.rank_embeddings,
        dtype=_choice("model.compute_dtype", m.compute_dtype, ("float32", "bfloat16")),
    )


def class_weights(inverse_frequencies) -> tuple[float, ...]:
    """Weights of a cross-entropy: the square root of inverse frequencies, the background's 1."""
    return (1.0, *np.sqrt(np.asarray(inverse_frequencies, np.float64)[1:]).tolist())


def _capacities(config) -> tuple[int, ...]:
    sizes = tuple(config.model.subgraph_capacities)
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
        raise UserError(
            f"config.model.subgraph_capacities is {sizes}; it needs ascending positive numbers"
        )
    return sizes


def _proposal_options(section) -> ProposalOptions:
    return ProposalOptions(
        pre_nms=section.pre_nms,
        post_nms=section.post_nms,
        nms_threshold=section.nms_threshold,
        min_size=section.min_size,
    )


def train_options(config, *, object_weights, predicate_weights) -> TrainOptions:
    """Options of the objective; `config.train.class_weights` switches the class weights on."""
    t, r = config.train, config.rpn_train
    return TrainOptions(
        proposals=_proposal_options(r),
        anchors=AnchorOptions(
            negative_overlap=r.negative_overlap,
            positive_overlap=r.positive_overlap,
            allowed_border=r.allowed_border,
            batch_size=r.batch_size,
            foreground_fraction=r.foreground_fraction,
        ),
        samples=SampleOptions(
            object_batch=t.object_batch,
            object_foreground_fraction=t.object_foreground_fraction,
            object_foreground_overlap=t.object_foreground_overlap,
            object_background_overlap=t.object_background_overlap,
            relation_batch=t.relation_batch,
            relation_foreground_fraction=t.relation_foreground_fraction,
        ),
        loss_weights=LossWeights(**t.loss_weights.to_dict()),
        object_weights=object_weights if t.class_weights else None,
        predicate_weights=predicate_weights if t.class_weights else None,
        subgraph_capacities=_capacities(config),
        subgraph_nms=t.subgraph_nms,
        duplicate_removal=config.model.duplicate_removal,
        mean=tuple(config.image.mean),
        std=tuple(config.image.std),
    )


def test_options(config, sgb_rankings: bool = False) -> TestOptions:
    """Options of detection; `sgb_rankings` adds what the SGB protocol looks at."""
    t = config.test
    if t.max_triplets < MIN_TRIPLETS:
        raise UserError(
            f"config.test.max_triplets is {t.max_triplets}, but recall@{MIN_TRIPLETS} looks at as "
            f"many triplets; set at least {MIN_TRIPLETS}"
        )
    return TestOptions(
        proposals=_proposal_options(t),
        max_objects=t.max_objects,
        subgraph_capacities=_capacities(config),
        subgraph_nms=t.subgraph_nms,
        use_gt_boxes=t.use_gt_boxes,
        use_gt_labels=t.use_gt_labels,
        self_pairs=t.self_pairs,
        sgb_rankings=sgb_rankings,
        duplicate_removal=config.model.duplicate_removal,
        object_nms=t.object_nms,
        triplet_nms=t.triplet_nms,
        predicates_per_pair=t.predicates_per_pair,
        max_candidates=t.max_candidates,
        max_triplets=t.max_triplets,
        mean=tuple(config.image.mean),
        std=tuple(config.image.std),
    )
