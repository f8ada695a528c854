"""ROI-align of the original F-Net, in its exact separable form.

No half-pixel shift, plain sides (no +1) of at least one cell, `ceil(side / P)` bilinear samples a
bin and axis, samples outside `[-1, size]` count as zero, samples beyond the border cells read the
border. Where a sample falls, how it is weighted and whether it counts depend on each axis alone, so
an ROI is two small matrices: `out[p, q, c] = sum_h sum_w Ay[p, h] Ax[q, w] F[h, w, c]`. Dense
products, forward and backward; no scatter, and the same result on every run. On a CPU the forward
pass gathers the few cells that have a weight instead, some twentieth of the multiply-adds.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# ROIs a step: bounds the temporary [chunk, P, W, C] array.
_CHUNK = 25
# Taps a step and axis: what a bin of at most two cells has, the most common.
_BLOCK = 3
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
    height, width = features_size or features.shape[:2]
    rows = _bins(rois[:, 1], rois[:, 3], pool_size, height)
    columns = _bins(rois[:, 0], rois[:, 2], pool_size, width)
    return _pool(features, rows, columns)


class _Bins(NamedTuple):
    """The bins of all ROIs along one axis, float32 in cells; the leading axis may be mapped away.

    Attributes:
      starts: `[N, P]`.
      size: `[N]` of each bin.
      limit: `[N]` cells that exist; the weights of the others are zero.
    """

    starts: jax.Array
    size: jax.Array
    limit: jax.Array


def _bins(start, stop, pool_size: int, valid_size) -> _Bins:
    """Bins of ROIs from `start` to `stop`, `[N]` float32 in cells."""
    size = jnp.maximum(stop - start, 1.0) / pool_size
    starts = start[:, None] + jnp.arange(pool_size, dtype=jnp.float32) * size[:, None]
    return _Bins(starts, size, jnp.full_like(size, valid_size))


def _positions(bins: _Bins, sample: jax.Array) -> jax.Array:
    """Where the samples of that number lie in each bin, `[N, P, ...]` like `sample`."""
    size = bins.size[..., None, None]
    return bins.starts[..., None] + (sample + 0.5) * size / jnp.ceil(size)


def _weights(bins: _Bins, cell: jax.Array) -> jax.Array:
    """Weight of the cells in each bin's average, `[N, P, K]`.

    A cell h is reached by samples in [h - 1, h + 1] only. There are `g = ceil(size)` samples a bin,
    so they lie more than half a cell apart unless g = 1: at most four reach a cell, whatever the
    size of the ROI. Six candidates leave room for rounding on either side.

    Args:
      cell: int32, broadcasts to `[N, P, K]`.
    """
    size, limit = bins.size[..., None, None], bins.limit[..., None, None]
    samples = jnp.ceil(size)
    cell = cell.astype(jnp.float32)
    first = jnp.floor((cell - 1.0 - bins.starts[..., None]) * (samples / size) - 0.5)
    first = jnp.maximum(first, 0.0)
    total = jnp.zeros_like(first)
    for step in range(6):
        sample = first + step
        position = _positions(bins, sample)
        counts = (sample < samples) & (position >= -1.0) & (position <= limit)
        distance = jnp.abs(jnp.clip(position, 0.0, limit - 1.0) - cell)
        total += jnp.where(counts, jnp.maximum(1.0 - distance, 0.0), 0.0)
    return total / samples


@jax.custom_vjp
def _pool(features: jax.Array, rows: _Bins, columns: _Bins) -> jax.Array:
    """`[N, P, P, C]` from features `[H, W, C]`."""
    return jax.lax.platform_dependent(features, rows, columns, cpu=_by_taps, default=_dense)


def _dense(features, rows, columns):
    """Products with the weights of all rows and of all columns."""

    def one_chunk(weights):
        rows, columns = weights
        strips = _einsum("mh,hwc->mwc", _flat(rows), features)
        return _einsum("mqw,mwc->mqc", _per_row(columns), strips)

    weights = _dense_weights(features, rows, columns)
    pooled = jax.lax.map(one_chunk, jax.tree.map(_chunks, weights))
    count, pool_size = rows.starts.shape
    return pooled.reshape(-1, pool_size, pool_size, features.shape[-1])[:count]


def _dense_weights(features, rows, columns):
    """Weights of every row `[N, P, H]` and of every column `[N, P, W]`."""
    height, width = features.shape[:2]
    return _weights(rows, jnp.arange(height)), _weights(columns, jnp.arange(width))


# A batched loop would take every ROI through as many steps as the largest of its batch.
@jax.custom_batching.sequential_vmap
def _by_taps(features, rows, columns):
    """The same sums over the cells that have a weight, for a backend that gathers cheaply.

    A bin reads few consecutive cells of an axis, its taps. The first `_BLOCK` taps of all ROIs are
    added at once, and are all that a small ROI has; a loop adds the further blocks of the others.
    """
    top, blocks_down = _taps(rows)
    left, blocks_across = _taps(columns)
    rois = rows, top, columns, left
    first = jax.vmap(functools.partial(_block, features, 0, 0))(*rois)
    count = len(first)
    if not count:
        return first  # An axis of no entries cannot be indexed, not even in a loop of no steps.

    def add_rest(pooled, roi):
        index, roi, down, across = roi

        def add(block, pooled):
            row, column = jnp.divmod(block, across)
            return pooled.at[index].add(_block(features, row, column, *roi))

        return jax.lax.fori_loop(1, down * across, add, pooled), None

    return jax.lax.scan(add_rest, first, (jnp.arange(count), rois, blocks_down, blocks_across))[0]


def _taps(bins: _Bins) -> tuple[jax.Array, jax.Array]:
    """First cell that each bin reads, `[N, P]`, and blocks that cover any bin of an ROI, `[N]`.

    Where rounding moves a sample across a centre, the cell missed weighs next to nothing.
    """
    last_sample = jnp.ceil(bins.size) - 1.0
    ends = jnp.stack([jnp.zeros_like(last_sample), last_sample], axis=-1)  # [N, 2]
    positions = jnp.clip(_positions(bins, ends[:, None]), 0.0, bins.limit[:, None, None] - 1.0)
    first, last = jnp.moveaxis(jnp.floor(positions).astype(jnp.int32), -1, 0)  # [N, P]
    taps = jnp.max(last + 2 - first, axis=-1)  # a sample reads two cells
    return first, -(-taps // _BLOCK)


def _block(features, row, column, rows: _Bins, top, columns: _Bins, left) -> jax.Array:
    """What block (row, column) of one ROI's taps adds to it, `[P, P, C]`.

    Args:
      top, left: `[P]` first tap of each bin.
    """
    taps = jnp.arange(_BLOCK)
    y = top[:, None] + row * _BLOCK + taps  # [P, _BLOCK]
    x = left[:, None] + column * _BLOCK + taps
    row_weights, column_weights = _weights(rows, y), _weights(columns, x)
    total = 0.0
    for i in range(_BLOCK):
        for j in range(_BLOCK):
            weight = row_weights[:, None, i] * column_weights[:, j]  # [P, P]
            # Cells beyond the map are weightless.
            total += weight[..., None] * features.at[y[:, None, i], x[:, j]].get(mode="clip")
    return total


def _pool_forward(features, rows, columns):
    return _pool(features, rows, columns), (features, rows, columns)


def _pool_backward(residuals, cotangent):
    features, rows, columns = residuals

    def add_chunk(gradient, chunk):
        rows, columns, cotangent = chunk
        strips = _einsum("mqw,mqc->mwc", _per_row(columns), _flat(cotangent))
        return gradient + _einsum("mh,mwc->hwc", _flat(rows), strips), None

    weights = _dense_weights(features, rows, columns)
    gradient, _ = jax.lax.scan(
        add_chunk, jnp.zeros_like(features), jax.tree.map(_chunks, (*weights, cotangent))
    )
    return gradient, None, None


_pool.defvjp(_pool_forward, _pool_backward)


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
