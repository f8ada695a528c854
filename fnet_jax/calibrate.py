"""Data-dependent start of a backbone that trains from random weights."""

import jax
import jax.numpy as jnp
import numpy as np

from fnet_jax.backbone import BLOCKS, LAYERS, max_pool
from fnet_jax.layers import convolve


def calibrate_backbone(params: dict, images) -> dict:
    """Shifts and scales every filter so that it answers example images with mean 0 and variance 1.

    Thirteen ReLU layers of random weights map all images to nearly the same features; without this
    the network spends its first thousands of steps on pulling them apart (Krähenbühl et al., ICLR
    2016, "Data-dependent initializations of convolutional neural networks").

    Args:
      params: backbone parameters.
      images: (n, h, w, 3) float32, normalised, all of one size.

    Returns: backbone parameters of the same structure, NumPy arrays.
    """
    x, layer, calibrated = jnp.asarray(images), iter(LAYERS), {}
    for block, repeats in enumerate(BLOCKS):
        if block:
            x = max_pool(x)
        for _ in range(repeats):
            name = next(layer)
            kernel = params[name]["kernel"]
            y = convolve(x, kernel)
            mean, spread = y.mean((0, 1, 2)), y.std((0, 1, 2)) + 1e-5
            x = jax.nn.relu((y - mean) / spread)
            calibrated[name] = {"kernel": kernel / spread, "bias": -mean / spread}
    return jax.tree.map(np.asarray, calibrated)
