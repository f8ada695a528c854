"""Data-dependent start of a network that trains from random weights."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fnet_jax.layers import Conv3x3, Linear
from fnet_jax.model import FactorizableNet

# What is left as initialised: layers that answer (scores, boxes) and layers that add to a residual
# sum start near zero on purpose; duplicate removal starts as the published one.
_CALIBRATED = (
    ("backbone",),
    ("rpn", "conv"),
    ("object_fc",),
    ("subgraph_conv",),
    ("predicate_inference",),
)
_IMAGES, _STATISTICS = "images", "calibrated"


def calibrate(model: FactorizableNet, params: dict, images) -> dict:
    """Shifts and scales every filter so that it answers example images with mean 0 and variance 1.

    Thirteen ReLU layers of random weights map all images to nearly the same features, and the
    published start of the predicate layers (normal, 0.01) is made for 512 channels; without this
    the network spends its first thousands of steps on pulling examples apart (Krähenbühl et al.,
    ICLR 2016, "Data-dependent initializations of convolutional neural networks"). Objects and
    subgraphs are windows on a grid: no annotation is needed.

    Args:
      model: the network.
      params: its parameters.
      images: (n, h, w, 3) float32, normalised, all of one size.

    Returns: parameters of the same structure, NumPy arrays.
    """
    height, width = images.shape[1:3]
    windows = jnp.asarray(_windows(height, width))

    def forward(module, image):
        features = module.features(image, (height, width))
        module.rpn_outputs(features)
        used = jnp.ones(len(windows), bool)
        everything = jnp.ones((len(windows), len(windows)), bool)
        size = features.shape[:2]
        objects = module.embed_objects(features, size, windows)
        outputs = module.graph(objects, features, size, windows, used, windows, everything)
        index = jnp.arange(len(windows))
        module.predicates(outputs, index, jnp.roll(index, 1), jnp.roll(index, 2))

    def statistics(image):
        with nn.intercept_methods(_normalise):
            return model.apply({"params": params}, image, method=forward, mutable=[_STATISTICS])[1]

    found = jax.jit(jax.vmap(statistics, axis_name=_IMAGES, out_axes=None))(images)
    calibrated = flax.traverse_util.flatten_dict(params)
    calibrated |= flax.traverse_util.flatten_dict(dict(found[_STATISTICS]))
    return jax.tree.map(np.asarray, flax.traverse_util.unflatten_dict(calibrated))


def _windows(height: int, width: int) -> np.ndarray:
    """Overlapping boxes of half and of a third of the image: (n, 4) float32."""
    boxes = []
    for parts in (2, 3):
        h, w = height / parts, width / parts
        for y in np.arange(2 * parts - 1) * h / 2:
            boxes += [(x, y, x + w - 1, y + h - 1) for x in np.arange(2 * parts - 1) * w / 2]
    return np.array(boxes, np.float32)


def _normalise(call, args, kwargs, context):
    """Interceptor: normalises the answer of a calibrated layer and stores the parameters for it."""
    layer, y = context.module, call(*args, **kwargs)
    if not isinstance(layer, Linear | Conv3x3) or context.method_name != "__call__":
        return y
    if not any(layer.path[: len(prefix)] == prefix for prefix in _CALIBRATED):
        return y
    axes = tuple(range(y.ndim - 1))
    own = layer.variables["params"]
    mean = jax.lax.pmean(y.mean(axes), _IMAGES) if "bias" in own else jnp.zeros(y.shape[-1])
    spread = jnp.sqrt(jax.lax.pmean(jnp.square(y - mean).mean(axes), _IMAGES)) + 1e-5
    layer.put_variable(_STATISTICS, "kernel", own["kernel"] / spread)
    if "bias" in own:
        layer.put_variable(_STATISTICS, "bias", (own["bias"] - mean) / spread)
    return (y - mean) / spread
