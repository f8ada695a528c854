"""The terms that training minimises.

Per-element values, masks, and one place that weighs and sums.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from fnet_jax.structures import AnchorTargets, ObjectTargets, PairTargets


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """What each term counts in the total; the published values."""

    object_class: float = 1.0
    object_box: float = 0.5
    predicate: float = 2.0
    duplicate: float = 1.0
    rpn: float = 0.5
    rpn_box: float = 0.2


def cross_entropy(logits, labels, mask, class_weights=None):
    """Mean over used rows, weighted by the weight of each row's label; 0 without rows.

    (N, C) float32, (N,) int32, (N,) bool, (C,) float32 or None -> () float32.
    """
    values = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    weights = jnp.ones_like(values) if class_weights is None else jnp.asarray(class_weights)[labels]
    weights = jnp.where(mask, weights, 0.0)
    total = jnp.sum(weights)
    return jnp.sum(weights * values) / jnp.where(total > 0.0, total, 1.0)


def box_loss(deltas, targets, foreground, epsilon: float):
    """Smooth-L1 sum over foreground rows / (their number + epsilon).

    (N, 4) float32 predictions and targets, (N,) bool -> () float32.
    """
    # Targets of background rows may be huge: cut them before the difference, not after.
    difference = jnp.where(foreground[:, None], deltas - targets, 0.0)
    total = jnp.sum(optax.losses.huber_loss(difference, delta=1.0))
    return total / (jnp.sum(foreground).astype(jnp.float32) + epsilon)


def rpn_losses(logits, deltas, targets: AnchorTargets) -> dict:
    """Proposal network: (h, w, 2, A) logits and (h, w, A, 4) deltas -> `rpn_class`, `rpn_box`."""
    pair = jnp.moveaxis(logits, 2, -1).reshape(-1, 2)  # (h*w*A, 2)
    return {
        "rpn_class": cross_entropy(pair, jnp.maximum(targets.labels, 0), targets.labels >= 0),
        "rpn_box": box_loss(deltas.reshape(-1, 4), targets.deltas, targets.labels == 1, 1e-4),
    }


def object_losses(logits, deltas, targets: ObjectTargets, class_weights=None) -> dict:
    """Objects: (R, C) logits and (R, C, 4) deltas -> `object_class`, `object_box`."""
    chosen = jnp.take_along_axis(deltas, targets.labels[:, None, None], axis=1)[:, 0]  # (R, 4)
    return {
        "object_class": cross_entropy(logits, targets.labels, targets.mask, class_weights),
        "object_box": box_loss(chosen, targets.deltas, targets.labels > 0, 1e-5),
    }


def predicate_loss(logits, targets: PairTargets, class_weights=None) -> dict:
    """Predicates: (N, Q) logits -> `predicate`."""
    return {"predicate": cross_entropy(logits, targets.labels, targets.mask, class_weights)}


def label_probability(logits, labels):
    """Probability (R,) that an object has its assigned label; background objects: P(background)."""
    return jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), labels[:, None], axis=1)[:, 0]


def _floored_log(x):
    """log x, at least -100, of x >= 0; the gradient is 0 where the floor applies."""
    # The reciprocal of a subnormal number is infinite, and some backends take it for 0 anyway.
    positive = x >= jnp.finfo(x.dtype).tiny
    return jnp.where(positive, jnp.maximum(jnp.log(jnp.where(positive, x, 1.0)), -100.0), -100.0)


def duplicate_loss(probability, factor, targets: ObjectTargets) -> dict:
    """Cross-entropy of label probability x factor against "first of its object" -> `duplicate`.

    Mean over the foreground; 0 without any. Logarithms stop at -100.
    """
    foreground = targets.labels > 0
    p = jnp.where(foreground, probability * factor, 0.5)
    values = jnp.where(targets.first, -_floored_log(p), -_floored_log(1.0 - p))
    count = jnp.sum(foreground).astype(jnp.float32)
    return {"duplicate": jnp.sum(jnp.where(foreground, values, 0.0)) / (count + 1e-10)}


def weighted_total(terms: dict, weights: LossWeights):
    """The sum that is minimised; absent terms count nothing.

    The weight of the RPN is its share beside the other losses: alone, its loss counts fully.
    """
    total = jnp.zeros((), jnp.float32)
    for name in ("object_class", "object_box", "predicate", "duplicate"):
        if name in terms:
            total = total + getattr(weights, name) * terms[name]
    if "rpn_class" in terms:
        share = weights.rpn if "object_class" in terms else 1.0
        total = total + share * (terms["rpn_class"] + weights.rpn_box * terms["rpn_box"])
    return total
