"""The published VRD model at its full size, with one image: what whole programs are timed on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import inputs
from fnet_jax import builder
from fnet_jax.configs import vrd
from fnet_jax.model import FactorizableNet
from fnet_jax.objective import training_losses

OBJECT_CLASSES, PREDICATES = 101, 71  # with background
MAX_GT = 32


@functools.cache
def config():
    return vrd.get_config()


@functools.cache
def model() -> FactorizableNet:
    return builder.build_model(config(), OBJECT_CLASSES, PREDICATES)


@functools.cache
def untrained_params() -> dict:
    """Weights as before the first step: every pair of objects is as likely as any other."""
    shape = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)
    template = jax.eval_shape(model().init, jax.random.key(0), shape)["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "bias":
            return np.zeros(leaf.shape, np.float32)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
        # What scores and boxes read starts small, as F-Net's heads do.
        if path[0].key.endswith(("score", "deltas")) or path[-2].key in ("score", "box_deltas"):
            spread = 0.01
        return (spread * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, template))


@functools.cache
def peaked_params() -> dict:
    """Untrained weights with certain heads: a few pairs are far more likely than all others."""
    params = untrained_params()
    heads = {"object_score": 1000.0, "predicate_score": 100.0}
    return params | {
        name: jax.tree.map(lambda x, f=factor: f * x, params[name])
        for name, factor in heads.items()
    }


def example(seed: int = 0) -> dict[str, np.ndarray]:
    """An image of smooth noise with a few annotated objects, in the format of a batch's row."""
    rng = np.random.default_rng(seed)
    height, width = inputs.IMAGE
    coarse = rng.integers(0, 256, (height // 20, width // 20, 3))
    image = np.kron(coarse, np.ones((20, 20, 1))) + rng.integers(-20, 21, (height, width, 3))
    boxes = np.zeros((MAX_GT, 4), np.float32)
    boxes[:8] = inputs.random_boxes(rng, 8)
    classes = np.zeros(MAX_GT, np.int32)
    classes[:8] = rng.integers(1, OBJECT_CLASSES, 8)
    relationships = np.zeros((MAX_GT, MAX_GT), np.int32)
    relationships[rng.integers(0, 8, 10), rng.integers(0, 8, 10)] = 1
    return {
        "image": np.clip(image, 0, 255).astype(np.uint8),
        "im_info": np.array([height, width, 1.2, height / 1.2, width / 1.2], np.float32),
        "gt_boxes": boxes,
        "gt_classes": classes,
        "gt_relationships": relationships,
    }


def training_step(params: dict, example: dict):
    """Losses and gradients of one image: ((total, report), gradients)."""
    options = builder.train_options(config(), object_weights=None, predicate_weights=None)
    frozen = config().train.frozen_backbone_layers

    def losses(params):
        key = jax.random.key(0)
        return training_losses(model(), params, example, key, options, frozen_layers=frozen)

    return jax.value_and_grad(losses, has_aux=True)(params)
