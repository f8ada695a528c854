"""Box arithmetic, and the only home of the pixel convention.

A box is `(x1, y1, x2, y2)` in float32 pixels, **inclusive**: it covers the columns x1..x2, so its
width is `x2 - x1 + 1` (F-Net follows Fast R-CNN here). ROI-align and the relation module's
geometry are the two places that measure plain `x2 - x1`; they do so in their own files.
A box with `x2 < x1` or `y2 < y1` is empty unless it spans a fraction of a pixel: area 0.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Regression targets are divided by these, so that all four have a spread near one.
DELTA_STD = (0.1, 0.1, 0.2, 0.2)


def sides(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inclusive widths and heights of boxes `[..., 4]`; zero or negative for inverted boxes."""
    return boxes[..., 2] - boxes[..., 0] + 1.0, boxes[..., 3] - boxes[..., 1] + 1.0


def area(boxes: jax.Array) -> jax.Array:
    """Areas `[...]` in square pixels of boxes `[..., 4]`; an empty or inverted box has area 0."""
    return _column_area(*_columns(boxes))


def intersection_and_union(
    a: Sequence[jax.Array], b: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Areas of the intersections and unions of boxes given as columns.

    Compare overlaps through these two, `intersection > threshold * union`, rather than through
    `iou`: the product is the same decision on every backend, while a quotient is rounded
    differently by some GPUs and by fused multiply-adds.

    Args:
      a, b: x1, y1, x2, y2, each an array or the first axis of one; broadcast against each other.
        Columns, because comparing many boxes with many vectorises over the last axis.
    """
    intersection = _column_area(
        jnp.maximum(a[0], b[0]),
        jnp.maximum(a[1], b[1]),
        jnp.minimum(a[2], b[2]),
        jnp.minimum(a[3], b[3]),
    )
    return intersection, _column_area(*a) + _column_area(*b) - intersection


def _columns(boxes: jax.Array) -> tuple[jax.Array, ...]:
    """x1, y1, x2, y2 of boxes `[..., 4]`, each `[...]`."""
    return tuple(boxes[..., column] for column in range(4))


def _column_area(x1: jax.Array, y1: jax.Array, x2: jax.Array, y2: jax.Array) -> jax.Array:
    """Inclusive area, 0 for empty and inverted boxes."""
    return jnp.maximum(x2 - x1 + 1.0, 0.0) * jnp.maximum(y2 - y1 + 1.0, 0.0)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union in [0, 1], elementwise over broadcast boxes `[..., 4]`.

    Two empty boxes have IoU 0.
    """
    intersection, union = intersection_and_union(_columns(a), _columns(b))
    return jnp.where(union > 0.0, intersection / jnp.where(union > 0.0, union, 1.0), 0.0)


def pairwise_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU matrix `[N, M]` of boxes `a [N, 4]` and `b [M, 4]`."""
    return iou(a[:, None, :], b[None, :, :])


def union_boxes(a: jax.Array, b: jax.Array) -> jax.Array:
    """Smallest boxes `[..., 4]` that cover both `a` and `b`, elementwise over leading axes."""
    return jnp.concatenate(
        [jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], axis=-1
    )


def encode_boxes(boxes: jax.Array, targets: jax.Array) -> jax.Array:
    """Normalised regression deltas `[..., 4]` that carry `boxes` onto `targets`.

    `(dx, dy)` is the shift of the centre in units of the box's sides, `(dw, dh)` the log of the
    ratio of sides; all divided by `DELTA_STD` (spec: means 0).

    Args:
      boxes, targets: `[..., 4]` with sides > 0.
    """
    width, height = sides(boxes)
    target_width, target_height = sides(targets)
    # Twice the shift of the centre as a sum of corner shifts: no cancellation of large centres.
    shift = targets - boxes
    deltas = jnp.stack(
        [
            0.5 * (shift[..., 0] + shift[..., 2]) / width,
            0.5 * (shift[..., 1] + shift[..., 3]) / height,
            jnp.log(target_width / width),
            jnp.log(target_height / height),
        ],
        axis=-1,
    )
    return deltas / jnp.array(DELTA_STD, deltas.dtype)


def decode_boxes(boxes: jax.Array, deltas: jax.Array) -> jax.Array:
    """Apply normalised deltas to boxes: the inverse of `encode_boxes`.

    Args:
      boxes: `[..., 4]`.
      deltas: `[..., 4]`, broadcast against `boxes` (for example `[R, C, 4]` on `[R, 1, 4]`).

    Returns:
      Boxes `[..., 4]`, not clipped.
    """
    width, height = sides(boxes)
    scaled = deltas * jnp.array(DELTA_STD, deltas.dtype)
    centre_x = boxes[..., 0] + 0.5 * width + scaled[..., 0] * width
    centre_y = boxes[..., 1] + 0.5 * height + scaled[..., 1] * height
    half_width = 0.5 * width * jnp.exp(scaled[..., 2])
    half_height = 0.5 * height * jnp.exp(scaled[..., 3])
    return jnp.stack(
        [
            centre_x - half_width,
            centre_y - half_height,
            centre_x + half_width - 1.0,  # inclusive: the last covered pixel
            centre_y + half_height - 1.0,
        ],
        axis=-1,
    )


def clip_boxes(boxes: jax.Array, height: jax.Array, width: jax.Array) -> jax.Array:
    """Clip boxes `[..., 4]` to an image: x to `[0, width - 1]`, y to `[0, height - 1]`.

    Args:
      boxes: `[..., 4]`.
      height, width: image size in pixels, numbers or traced scalars.
    """
    last = jnp.stack([width, height, width, height]).astype(boxes.dtype) - 1.0
    return jnp.clip(boxes, 0.0, last)
