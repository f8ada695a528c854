"""Linear and convolution layers that start as PyTorch's do, and grouped dropout."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fnet_jax.kernels import convolve

DROPOUT_GROUPS = 16


def _uniform(bound: float):
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def initializers(kernel_init: str | float, fan_in: int):
    """(kernel, bias) initializers.

    `kernel_init` is a standard deviation (normal weights; biases keep PyTorch's default, uniform
    within 1/sqrt(fan_in)), "he_uniform" or "he_normal" (zero biases), or "default" (PyTorch's).
    """
    default = _uniform(fan_in**-0.5)
    if kernel_init == "default":
        return default, default
    if kernel_init == "he_uniform":
        return _uniform((6.0 / fan_in) ** 0.5), nn.initializers.zeros
    if kernel_init == "he_normal":
        return nn.initializers.normal((2.0 / fan_in) ** 0.5), nn.initializers.zeros
    return nn.initializers.normal(kernel_init), default


def rounded(x, dtype: str):
    """x in a narrower dtype. "float32" leaves x as it is, be it wider."""
    return x if dtype == "float32" else x.astype(dtype)


class Linear(nn.Module):
    """y = x W + b over the last axis; also every 1x1 convolution of a channels-last map.

    With `dtype` "bfloat16" the factors are rounded to it; sums, the bias and y stay float32.
    """

    features: int
    kernel_init: str | float = "default"
    use_bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):  # (..., in) -> (..., features)
        kernel_init, bias_init = initializers(self.kernel_init, x.shape[-1])
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features))
        sum_dtype = jnp.promote_types(x.dtype, kernel.dtype)
        x, kernel = rounded(x, self.dtype), rounded(kernel, self.dtype)
        y = jnp.matmul(x, kernel, preferred_element_type=sum_dtype)
        if self.use_bias:
            y = y + self.param("bias", bias_init, (self.features,))
        return y


class Conv3x3(nn.Module):
    """3x3 convolution with bias.

    With `dtype` "bfloat16" input, filter and the convolution's result are rounded to it.
    """

    features: int
    kernel_init: str | float = "default"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):  # (n, h, w, in) -> (n, h, w, features)
        shape = (3, 3, x.shape[-1], self.features)
        kernel_init, bias_init = initializers(self.kernel_init, 9 * x.shape[-1])
        kernel = self.param("kernel", kernel_init, shape)
        y = convolve(rounded(x, self.dtype), rounded(kernel, self.dtype)).astype(x.dtype)
        return y + self.param("bias", bias_init, (self.features,))


class GroupDropout(nn.Module):
    """Drops whole groups of neighbouring channels (16 groups), the same at all map positions."""

    rate: float

    @nn.compact
    def __call__(self, x, *, train: bool):  # (n, ..., channels)
        if not train or self.rate == 0.0:
            return x
        shape = (x.shape[0], *(1,) * (x.ndim - 2), DROPOUT_GROUPS, 1)
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, shape)
        groups = x.reshape(*x.shape[:-1], DROPOUT_GROUPS, -1)
        return jnp.where(keep, groups / (1.0 - self.rate), 0.0).reshape(x.shape)
