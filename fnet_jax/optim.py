"""Who trains when, how fast, and by which rule: stages, phases, parameter groups, optimizers.

The optimizers follow PyTorch's formulas, because the published recipes were tuned with them: weight
decay joins the gradient after clipping, and the learning rate multiplies the finished direction
(so the momentum buffer never contains a learning rate).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from fnet_jax.errors import UserError

GROUPS = ("backbone", "rpn", "message_passing", "heads")
VGG16_CONV_LAYERS = 13
# Leaves by their path in the parameter tree: {"backbone/conv1_1/kernel": array}.
FlatParams = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training with one set of trainable parameters; static and hashable.

    Attributes:
      trainable: the groups of `GROUPS` that train.
      rpn_loss: whether the loss of the region proposal network counts.
      graph_loss: whether the losses of objects, predicates and duplicate removal count.
      frozen_backbone_layers: convolutions of VGG16 that stay fixed, from the first; 13 = all.
      start_epoch: the epoch at which the phase begins, with a fresh schedule and optimizer state.
    """

    trainable: tuple[str, ...]
    rpn_loss: bool
    graph_loss: bool
    frozen_backbone_layers: int
    start_epoch: int


class _Part(NamedTuple):
    """A phase as the stage table states it; starts are counted in learning-rate steps."""

    trainable: tuple[str, ...]
    rpn_loss: bool = True
    graph_loss: bool = True
    start_lr_step: int = 0


# The five stages of the original's training scripts, and training from random weights throughout.
STAGES: dict[str, tuple[_Part, ...]] = {
    "rpn": (_Part(("rpn",), graph_loss=False),),
    "from_scratch": (_Part(GROUPS),),
    "from_rpn": (_Part(GROUPS),),
    "end_to_end": (
        _Part(("rpn", "message_passing", "heads")),
        _Part(GROUPS, start_lr_step=1),
    ),
    "continue": (_Part(GROUPS),),
    "message_passing": (_Part(("message_passing",), rpn_loss=False),),
}


def phases(stage: str, *, lr_decay_epochs: int, frozen_backbone_layers: int) -> tuple[Phase, ...]:
    """The phases of a named stage, in order.

    Args:
      stage: a key of `STAGES`.
      lr_decay_epochs: epochs between two steps of the learning rate.
      frozen_backbone_layers: convolutions that never train, even where the backbone does.

    Raises:
      UserError: for an unknown stage or an impossible number.
    """
    if stage not in STAGES:
        raise UserError(f"config.train.stage={stage!r} is unknown; use one of {', '.join(STAGES)}")
    if lr_decay_epochs < 1:
        raise UserError(f"config.train.lr_decay_epochs={lr_decay_epochs} must be at least 1")
    if not 0 <= frozen_backbone_layers <= VGG16_CONV_LAYERS:
        raise UserError(
            f"config.train.frozen_backbone_layers={frozen_backbone_layers} must lie between 0 and "
            f"{VGG16_CONV_LAYERS}"
        )
    return tuple(
        Phase(
            trainable=part.trainable,
            rpn_loss=part.rpn_loss,
            graph_loss=part.graph_loss,
            frozen_backbone_layers=(
                frozen_backbone_layers if "backbone" in part.trainable else VGG16_CONV_LAYERS
            ),
            start_epoch=part.start_lr_step * lr_decay_epochs,
        )
        for part in STAGES[stage]
    )


def phase_at(stage_phases: tuple[Phase, ...], epoch: int) -> Phase:
    """The phase that an epoch (from 0) belongs to."""
    return [phase for phase in stage_phases if phase.start_epoch <= epoch][-1]


def learning_rate(
    epoch: int, phase: Phase, *, base: float, decay: float, decay_epochs: int
) -> float:
    """Step schedule, counted from the start of the phase: base * decay^(epochs // decay_epochs)."""
    return base * decay ** ((epoch - phase.start_epoch) // decay_epochs)


def cosine_learning_rate(progress: float, *, base: float) -> float:
    """Half a cosine from `base` at progress 0 to nothing at 1 (Loshchilov and Hutter, 2017)."""
    return base * 0.5 * (1.0 + math.cos(math.pi * progress))


def group_of(path: str) -> str:
    """The group (one of `GROUPS`) of a parameter path such as "message_passing_0/relation/key"."""
    top = path.split("/", 1)[0]
    if top.startswith("message_passing_"):
        return "message_passing"
    return top if top in ("backbone", "rpn") else "heads"


def split(params: Mapping[str, Any], phase: Phase) -> tuple[FlatParams, FlatParams]:
    """Splits a parameter tree into (trainable, frozen) leaves for a phase.

    Raises:
      UserError: if nothing is left to train (e.g. message passing alone in a model of zero steps).
    """
    # conv1_1 < conv1_2 < conv2_1 ...: the names sort in the order of the network.
    fixed = sorted(params["backbone"])[: phase.frozen_backbone_layers]
    trainable, frozen = {}, {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        group = group_of(path)
        trains = group in phase.trainable
        if group == "backbone":
            trains = trains and path.split("/")[1] not in fixed
        (trainable if trains else frozen)[path] = leaf
    if not trainable:
        raise UserError(
            f"Nothing to train: the model has no parameters in {', '.join(phase.trainable)}; "
            "choose another config.train.stage"
        )
    return trainable, frozen


def merge(trainable: FlatParams, frozen: FlatParams) -> dict[str, Any]:
    """The parameter tree again; the inverse of `split`."""
    return traverse_util.unflatten_dict({**trainable, **frozen}, sep="/")


class AdagradState(NamedTuple):
    """Sum of squared gradients of each leaf."""

    sum_of_squares: optax.Params


def _scale_by_adagrad(eps: float = 1e-10) -> optax.GradientTransformation:
    """g / (sqrt(sum of g^2) + eps). Optax adds eps under the root, which tiny gradients feel."""

    def init(params):
        return AdagradState(jax.tree.map(jnp.zeros_like, params))

    def update(gradients, state, params=None):
        del params
        sums = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, gradients)
        directions = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), gradients, sums)
        return directions, AdagradState(sums)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    name: str,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    clip_norm: float,
    backbone_lr_factor: float,
) -> optax.GradientTransformation:
    """An optimizer of flat trainable parameters that returns directions for a learning rate of 1.

    The learning rate stays outside (see `descend`), so that its steps need no new compilation.

    Args:
      name: "sgd" (momentum, optional Nesterov), "adam" or "adagrad", each as in PyTorch.
      momentum: for SGD only, as `nesterov`.
      weight_decay: times the parameter, added to the clipped gradient.
      clip_norm: largest global norm of the gradient of all trainable parameters.
      backbone_lr_factor: learning rate of the backbone relative to the others.

    Raises:
      UserError: for an unknown name.
    """
    rules = {
        "sgd": lambda: optax.trace(decay=momentum, nesterov=nesterov),
        "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        "adagrad": _scale_by_adagrad,
    }
    if name not in rules:
        raise UserError(
            f"config.train.optimizer={name!r} is unknown; use one of {', '.join(rules)}"
        )

    def is_backbone(params):
        return {path: group_of(path) == "backbone" for path in params}

    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.add_decayed_weights(weight_decay),
        rules[name](),
        optax.masked(optax.scale(backbone_lr_factor), is_backbone),
    )


def descend(params: FlatParams, directions: FlatParams, rate: jax.Array) -> FlatParams:
    """params - rate * directions, leaf by leaf; `rate` is a float32 scalar."""
    return jax.tree.map(lambda p, d: p - rate * d, params, directions)
