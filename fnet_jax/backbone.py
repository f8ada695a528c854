"""VGG16's thirteen convolutions (F-Net, sec. 4: the shared base network), exact under padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fnet_jax.layers import Conv3x3

# Convolutions per block; a 2x2 max-pool stands between blocks, none after the last.
BLOCKS = (2, 2, 3, 3, 3)
LAYERS = tuple(f"conv{b + 1}_{i + 1}" for b, n in enumerate(BLOCKS) for i in range(n))


def feature_size(height, width):
    """Size of the feature map of a (height, width) image: four floored halvings."""
    return height // 16, width // 16


def mask_outside(x, size):
    """Zeroes an (n, h, w, c) map outside its valid (height, width)."""
    rows = jnp.arange(x.shape[1]) < size[0]
    columns = jnp.arange(x.shape[2]) < size[1]
    return jnp.where((rows[:, None] & columns[None, :])[None, :, :, None], x, 0.0)


def max_pool(x):
    """2x2 max-pool, stride 2, odd last row and column dropped.

    The maximum of four strided slices: `reduce_window` has a backward pass many times slower on
    CPU.
    """
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :h, :w]
    top = jnp.maximum(x[:, ::2, ::2], x[:, ::2, 1::2])
    bottom = jnp.maximum(x[:, 1::2, ::2], x[:, 1::2, 1::2])
    return jnp.maximum(top, bottom)


class VGG16(nn.Module):
    """conv1_1 .. conv5_3 with ReLU; stride 16.

    Zeroing everything outside the valid size after each layer makes a padded image give exactly the
    features of the unpadded one: the next convolution then sees the zero border it would have seen.
    """

    widths: tuple[int, ...]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, image, size, *, frozen_layers: int = 0):
        """(H, W, 3) float32 and valid (height, width) int32 -> (H // 16, W // 16, widths[-1]).

        No gradient reaches the first `frozen_layers` convolutions.
        """
        x = mask_outside(image[None], size)
        layer = 0
        for block, repeats in enumerate(BLOCKS):
            if block:
                size = (size[0] // 2, size[1] // 2)
                # The odd last row or column of the valid size pools with padding: drop it too.
                x = mask_outside(max_pool(x), size)
            for _ in range(repeats):
                x = Conv3x3(self.widths[layer], "he_normal", self.dtype, name=LAYERS[layer])(x)
                x = mask_outside(nn.relu(x), size)
                layer += 1
                if layer == frozen_layers:
                    x = jax.lax.stop_gradient(x)
        return x[0]
