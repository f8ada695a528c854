"""3x3 convolution, stride 1, zero padding 1: the only kind that F-Net has.

GPU and TPU use XLA's own convolution throughout. On CPU wide layers go through Winograd's products
instead; in the others only the gradient of the filter is not XLA's, which computes it as a
convolution whose window is the whole image, 2 to 5 times slower than the matrix products that it
amounts to.
"""

import functools

import jax
import jax.numpy as jnp

from fnet_jax.kernels import winograd

_PLACES = ((0, 1, 2), (0, 1, 2))  # axes summed by the gradient of the filter: all but channels

# From where Winograd is faster on CPU. The products grow with C * D, the transforms of the maps
# with C + D: at C * D / (C + D) = 64 (128 to 128 channels) both ways took equally long, at 85 (128
# to 256) it was 1.3 to 1.5 times faster. The transform of the filter costs as much as many tiles:
# with 512 channels, 63 tiles were even, 35 were 1.4 times slower and 130 were 1.3 times faster.
_WIDE, _MANY = 80, 96


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of a batch of images or maps.

    Args:
      x: `[N, H, W, C]` float32 or bfloat16.
      kernel: `[3, 3, C, D]` of the same dtype.

    Returns: `[N, H, W, D]` of the same dtype.
    """
    tile = _winograd_tile(x, kernel.shape[-1])
    if tile is None:
        return _builtin(x, kernel)
    return jax.lax.platform_dependent(
        x, kernel, cpu=functools.partial(winograd.convolve, tile=tile), default=_builtin
    )


def _forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def _backward(residuals, cotangent):
    x, kernel = residuals
    # Turned by half a turn, with inputs and outputs exchanged: the transpose of the convolution.
    x_gradient = convolve(cotangent, jnp.swapaxes(kernel[::-1, ::-1], 2, 3))
    tile = _winograd_tile(x, kernel.shape[-1])
    if tile is None:
        on_cpu = _shifted_products
    else:
        on_cpu = functools.partial(winograd.kernel_gradient, tile=tile)
    kernel_gradient = jax.lax.platform_dependent(
        x, cotangent, cpu=on_cpu, default=_builtin_kernel_gradient
    )
    return x_gradient, kernel_gradient


convolve.defvjp(_forward, _backward)


def _winograd_tile(x: jax.Array, features: int) -> int | None:
    """Side of Winograd's tiles on CPU, or None where the plain way is faster.

    Tiles of 4; larger ones save little more and round worse. A map of 5 x 5, as pooled for a
    subgraph, is one tile of 5: 49 products for 25 results, where 4 tiles of 4 take 144. bfloat16
    takes the plain way: it would round the transforms too much.
    """
    _, height, width, channels = x.shape
    tile = 5 if height == width == 5 else 4
    wide = channels * features >= _WIDE * (channels + features)
    fine = x.dtype != jnp.bfloat16
    return tile if fine and wide and winograd.tile_count(x.shape, tile) >= _MANY else None


def _builtin(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _shifted_products(x, cotangent):
    """Gradient of the filter as one matrix product for each of its rows.

    The cotangents of its three columns lie side by side: with few channels a product of its own
    for each column is mostly copying.
    """
    h, w = x.shape[1:3]
    features = cotangent.shape[-1]
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    padded = jnp.pad(cotangent, ((0, 0), (0, 0), (1, 1), (0, 0)))
    columns = jnp.concatenate([padded[:, :, 2 - j : 2 - j + w] for j in range(3)], axis=-1)
    rows = [jnp.tensordot(x[:, i : i + h], columns, _PLACES) for i in range(3)]
    gradient = jnp.stack(rows).reshape(3, -1, 3, features)  # (row, C, column, D)
    return gradient.transpose(0, 2, 1, 3)


def _builtin_kernel_gradient(x, cotangent):
    """The same by XLA's convolution: batch and channels change places."""
    return jax.lax.conv_general_dilated(
        x, cotangent, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("CHWN", "IHWO", "HWNC")
    )
