"""Anchor boxes of the region proposal network: k-means shapes or the "normal" grid."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np

from fnet_jax.errors import UserError

STRIDE = 16  # pixels per feature cell after the four poolings of VGG16
REFERENCE_SCALE = 600  # k-means anchor scales are stated for images with this short side

NORMAL_SCALES = (2, 4, 8, 16, 32, 64)
NORMAL_RATIOS = (0.25, 0.5, 1, 2, 4)


def base_anchors(scales, ratios) -> np.ndarray:
    """Anchors around the first cell's centre (7.5, 7.5), one per (scale, height/width ratio).

    Returns (A, 4) float32 inclusive boxes. A 16x16 box takes the ratio (sides rounded), then the
    scale.
    """
    scales, ratios = np.asarray(scales, np.float64), np.asarray(ratios, np.float64)
    width = np.round(np.sqrt(STRIDE**2 / ratios))
    height = np.round(width * ratios)
    half_w, half_h = (width * scales - 1) / 2, (height * scales - 1) / 2
    centre = (STRIDE - 1) / 2
    boxes = [centre - half_w, centre - half_h, centre + half_w, centre + half_h]
    return np.stack(boxes, axis=1).astype(np.float32)


def normal_anchors() -> tuple[np.ndarray, np.ndarray]:
    """(scales, ratios), 30 each: six scales (slow) times five ratios (fast)."""
    scales, ratios = np.meshgrid(NORMAL_SCALES, NORMAL_RATIOS, indexing="ij")
    return scales.ravel(), ratios.ravel()


def read_kmeans_anchors(path) -> tuple[tuple, tuple]:
    """(scales, ratios) of a `kmeans_anchors.json`, for images with short side 600."""
    try:
        content = json.loads(pathlib.Path(path).read_text())
        scales, ratios = content["anchor_scales_kmeans"], content["anchor_ratios_kmeans"]
        scales, ratios = tuple(map(float, scales)), tuple(map(float, ratios))
    except FileNotFoundError:
        raise UserError(f"anchors.file: {path} does not exist") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"anchors.file: {path} needs the lists anchor_scales_kmeans and anchor_ratios_kmeans "
            f"({error!r})"
        ) from None
    if len(scales) != len(ratios) or not scales or min(scales + ratios) <= 0:
        raise UserError(f"anchors.file: {path} needs equally many positive scales and ratios")
    return scales, ratios


def shifted_anchors(base, height: int, width: int):
    """Anchors of every cell of a (height, width) map; row slowest, then column, then anchor.

    Returns (height * width * A, 4) float32.
    """
    x = jnp.arange(width, dtype=jnp.float32) * STRIDE
    y = jnp.arange(height, dtype=jnp.float32) * STRIDE
    shift_y, shift_x = jnp.meshgrid(y, x, indexing="ij")  # (height, width)
    shifts = jnp.stack([shift_x, shift_y, shift_x, shift_y], axis=-1)  # (height, width, 4)
    return (shifts[:, :, None, :] + jnp.asarray(base)[None, None]).reshape(-1, 4)
