"""3x3 convolution, stride 1, zero padding 1: the only kind that F-Net has.

Forward and the gradient of the image are XLA's own. On CPU the gradient of the filter is not:
XLA computes it as a convolution whose window is the whole image, 2 to 5 times slower than the
matrix products that it amounts to.
"""

import jax
import jax.numpy as jnp

_PLACES = ((0, 1, 2), (0, 1, 2))  # axes summed by the gradient of the filter: all but channels


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of a batch of images or maps.

    Args:
      x: `[N, H, W, C]` float32.
      kernel: `[3, 3, C, D]` float32.

    Returns: `[N, H, W, D]`.
    """
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def _backward(residuals, cotangent):
    x, kernel = residuals
    # Turned by half a turn, with inputs and outputs exchanged: the transpose of the convolution.
    x_gradient = convolve(cotangent, jnp.swapaxes(kernel[::-1, ::-1], 2, 3))
    kernel_gradient = jax.lax.platform_dependent(
        x, cotangent, cpu=_shifted_products, default=_builtin_kernel_gradient
    )
    return x_gradient, kernel_gradient


convolve.defvjp(_forward, _backward)


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
