"""Relation module: objects attend to each other by looks and by geometry.

Part of F-Net `v4s` and of duplicate removal.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fnet_jax.kernels import sincos
from fnet_jax.layers import Linear, initializers


def geometric_embedding(boxes):
    """log |dx|/w_i, log |dy|/h_i, log w_i/w_j, log h_i/h_j; log of 0 counts as 0.

    (R, 4) -> (R, R, 4) float32. Sides here are plain differences (no "+1"), plus 1e-10; a box that
    spans less than a pixel has x2 < x1, and its side counts as 0.
    """
    x1, y1, x2, y2 = boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3]
    w, h = jnp.maximum(x2 - x1, 0.0) + 1e-10, jnp.maximum(y2 - y1, 0.0) + 1e-10
    x, y = (x2 + x1) / 2, (y2 + y1) / 2
    ratios = jnp.stack(
        [
            jnp.abs(x[:, None] - x[None]) / w[:, None],
            jnp.abs(y[:, None] - y[None]) / h[:, None],
            w[:, None] / w[None],
            h[:, None] / h[None],
        ],
        axis=-1,
    )
    return jnp.where(ratios == 0.0, 0.0, jnp.log(jnp.where(ratios == 0.0, 1.0, ratios)))


class SinusoidLinear(nn.Module):
    """One number from `dim` sinusoids of each position: (..., 4) -> (...).

    The sinusoids are sin, then cos, of 100 * position / 1000^(8k/dim), k < dim/8, coordinate by
    coordinate; the weights are those of a linear layer over them. Steep near dx = 0: the main
    source of float noise in the whole network. Wavelength by wavelength, because all sinusoids of
    all pairs are ten times as many numbers as any other array of this module.
    """

    dim: int
    kernel_init: str | float

    @nn.compact
    def __call__(self, position):
        count = self.dim // 8
        kernel_init, bias_init = initializers(self.kernel_init, self.dim)
        kernel = self.param("kernel", kernel_init, (self.dim, 1))
        bias = self.param("bias", bias_init, (1,))
        wavelengths = 1000.0 ** (8.0 * np.arange(count) / self.dim)
        position = jnp.moveaxis(position, -1, 0)  # (4, ...): the long axes vectorise

        @jax.checkpoint  # Cheaper to compute again than to keep.
        def add_wavelength(total, wave):
            wavelength, weights = wave  # (), (2, 4) of sine and cosine
            waves = sincos(position * 100.0 / wavelength)
            sine, cosine = (wave.astype(kernel.dtype) for wave in waves)
            total += jnp.tensordot(weights[0], sine, 1) + jnp.tensordot(weights[1], cosine, 1)
            return total, None

        waves = (
            jnp.asarray(wavelengths, position.dtype),
            kernel.reshape(4, 2, count).transpose(2, 1, 0),  # (k, sine or cosine, coordinate)
        )
        total, _ = jax.lax.scan(add_wavelength, jnp.zeros(position.shape[1:], kernel.dtype), waves)
        return total + bias


class Geometry(nn.Module):
    """Non-negative weight of every (receiver, sender) pair from their boxes.

    "v1": linear(4 -> dim), ReLU, linear(dim -> 1), ReLU (VG-DR-Net); "v2": `dim` sinusoids,
    linear(dim -> 1), ReLU (VRD, and duplicate removal of VG-MSDN).
    """

    kind: str
    dim: int
    kernel_init: str | float

    @nn.compact
    def __call__(self, boxes):  # (R, 4) -> (R, R)
        x = geometric_embedding(jax.lax.stop_gradient(boxes))
        if self.kind == "v1":
            x = nn.relu(Linear(self.dim, self.kernel_init, name="fc1")(x))
            return nn.relu(Linear(1, self.kernel_init, name="fc2")(x))[..., 0]
        return nn.relu(SinusoidLinear(self.dim, self.kernel_init, name="fc1")(x))


class RelationModule(nn.Module):
    """Every object i gathers sum_j a_ij * value_j over the others.

    Hu et al. 2018, as F-Net uses it:
    a_ij = exp(key_i . query_j / sqrt(dim)) * g(box_i, box_j), zero for j = i, over its sum + 1e-10.
    The receiver supplies the key and the sender the query, as in the published code.
    """

    dim: int
    dim_out: int
    geometry: str
    kernel_init: str | float = "default"

    @nn.compact
    def __call__(self, features, boxes, mask):
        """(R, D), (R, 4) pixels, (R,) bool -> (R, dim_out).

        The first step is ReLU of the features.
        """
        x = nn.relu(features)
        key = Linear(self.dim, self.kernel_init, name="key")(x)  # (R, dim)
        query = Linear(self.dim, self.kernel_init, name="query")(x)
        value = Linear(self.dim_out, self.kernel_init, name="value")(x)  # (R, dim_out)
        # Divides a factor, not the product, for the reason given in `MessagePassing`.
        logits = (key / np.float32(np.sqrt(self.dim))) @ query.T  # (R, R)
        weight = Geometry(self.geometry, self.dim, self.kernel_init, name="geometry")(boxes)
        sends = mask[None, :] & ~jnp.eye(mask.shape[0], dtype=bool)
        # The original takes a bare exp, which overflows for large logits. Dividing numerator and
        # denominator by exp(top) keeps its value; top >= 0 leaves small logits as they were.
        heard = sends & (weight > 0.0)
        top = jnp.max(jnp.where(heard, logits, 0.0), axis=1, keepdims=True)
        top = jax.lax.stop_gradient(jnp.maximum(top, 0.0))
        # A sender that g silences may have a larger logit than `top`: cut it before the exp.
        scaled = jnp.exp(jnp.where(heard, logits - top, 0.0)) * jnp.where(sends, weight, 0.0)
        attention = scaled / (jnp.sum(scaled, axis=1, keepdims=True) + 1e-10 * jnp.exp(-top))
        return attention @ value
