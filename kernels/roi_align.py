"""ROI-align of the original F-Net, in its exact separable form.

No half-pixel shift, plain sides (no +1) of at least one cell, `ceil(side / P)` bilinear samples a
bin and axis, samples outside `[-1, size]` count as zero, samples beyond the border cells read the
border. Where a sample falls, how it is weighted and whether it counts depend on each axis alone, so
an ROI is two small matrices: `out[p, q, c] = sum_h sum_w Ay[p, h] Ax[q, w] F[h, w, c]`. Dense
products, forward and backward; no gather, no scatter, and the same result on every run.
"""

import functools

import jax
import jax.numpy as jnp

# ROIs a step: bounds the temporary [chunk, P, W, C] array.
_CHUNK = 25
# The products are part of the definition; a GPU's default would round the features to 10 bits.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def roi_align(
    features: jax.Array,
    rois: jax.Array,
    *,
    pool_size: int,
    spatial_scale: float,
    features_size: tuple[int | jax.Array, int | jax.Array] | None = None,
) -> jax.Array:
    """Average bilinear samples of a feature map over a P x P grid in each ROI.

    Differentiable with respect to `features`; the ROIs receive a zero gradient.

    Args:
      features: `[H, W, C]` float32.
      rois: `[N, 4]` float32 boxes in image pixels.
      pool_size: P, static.
      spatial_scale: cells per pixel, 1/16 for VGG16.
      features_size: valid (h, w) of a padded map, numbers or traced int32 (default: (H, W)). The
        result is that of the unpadded map; padded cells may hold anything finite.

    Returns:
      `[N, P, P, C]` float32, rows before columns.
    """
    rois = jax.lax.stop_gradient(rois) * spatial_scale
    height, width = features.shape[:2]
    valid_height, valid_width = features_size or (height, width)
    rows = _axis_weights(rois[:, 1], rois[:, 3], pool_size, height, valid_height)
    columns = _axis_weights(rois[:, 0], rois[:, 2], pool_size, width, valid_width)
    return _separable(features, rows, columns)


def _axis_weights(start, stop, pool_size: int, size: int, valid_size) -> jax.Array:
    """Weight of each cell in each bin's average along one axis, `[N, P, size]`.

    A cell h is reached by samples in [h - 1, h + 1] only. There are `g = ceil(bin)` samples a bin,
    so they lie more than half a cell apart unless g = 1: at most four reach a cell, whatever the
    size of the ROI. Six candidates leave room for rounding on either side.

    Args:
      start, stop: `[N]` float32 in cells.
      valid_size: cells that exist; the weights of the others are zero.
    """
    valid_size = jnp.asarray(valid_size, jnp.float32)
    start, stop = start[:, None, None], stop[:, None, None]  # [N, 1, 1]
    bin_size = jnp.maximum(stop - start, 1.0) / pool_size
    samples = jnp.ceil(bin_size)
    origin = start + jnp.arange(pool_size, dtype=jnp.float32)[:, None] * bin_size  # [N, P, 1]
    cell = jnp.arange(size, dtype=jnp.float32)  # [size]
    first = jnp.floor((cell - 1.0 - origin) * (samples / bin_size) - 0.5)  # [N, P, size]
    first = jnp.maximum(first, 0.0)
    total = jnp.zeros_like(first)
    for step in range(6):
        sample = first + step
        position = origin + (sample + 0.5) * bin_size / samples
        counts = (sample < samples) & (position >= -1.0)
        counts &= position <= valid_size
        distance = jnp.abs(jnp.clip(position, 0.0, valid_size - 1.0) - cell)
        total += jnp.where(counts, jnp.maximum(1.0 - distance, 0.0), 0.0)
    return total / samples


@jax.custom_vjp
def _separable(features: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """`[N, P, P, C]` from features `[H, W, C]`, rows `[N, P, H]` and columns `[N, P, W]`."""

    def one_chunk(weights):
        rows, columns = weights
        strips = _einsum("mh,hwc->mwc", _flat(rows), features)
        return _einsum("mqw,mwc->mqc", _per_row(columns), strips)

    pooled = jax.lax.map(one_chunk, (_chunks(rows), _chunks(columns)))
    count, pool_size, _ = rows.shape
    return pooled.reshape(-1, pool_size, pool_size, features.shape[-1])[:count]


def _separable_forward(features, rows, columns):
    return _separable(features, rows, columns), (features, rows, columns)


def _separable_backward(residuals, cotangent):
    features, rows, columns = residuals

    def add_chunk(gradient, chunk):
        rows, columns, cotangent = chunk
        strips = _einsum("mqw,mqc->mwc", _per_row(columns), _flat(cotangent))
        return gradient + _einsum("mh,mwc->hwc", _flat(rows), strips), None

    gradient, _ = jax.lax.scan(
        add_chunk, jnp.zeros_like(features), jax.tree.map(_chunks, (rows, columns, cotangent))
    )
    return gradient, jnp.zeros_like(rows), jnp.zeros_like(columns)


_separable.defvjp(_separable_forward, _separable_backward)


def _flat(x: jax.Array) -> jax.Array:
    """`[N, P, ...]` to `[N * P, ...]`: one plain batch axis m is what the backends are fast at."""
    return x.reshape(-1, *x.shape[2:])


def _per_row(columns: jax.Array) -> jax.Array:
    """`[N, P, W]` repeated for each of the P rows of bins, `[N * P, P, W]`."""
    return jnp.repeat(columns, columns.shape[1], axis=0)


def _chunks(x: jax.Array) -> jax.Array:
    """`[N, ...]` to `[chunks, n, ...]`, evenly, padded with zeros (weightless ROIs)."""
    count = x.shape[0]
    chunks = max(-(-count // _CHUNK), 1)
    size = -(-count // chunks)
    x = jnp.pad(x, [(0, chunks * size - count)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(chunks, size, *x.shape[1:])
