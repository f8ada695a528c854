"""Winograd's convolution against the float64 reference; its gradient against the adjoint.

Tolerances: by size of the largest result, since rounding of a tile spreads over all of its results.
A plain float32 sum over 512 channels is off by 1e-6 of it, tiles of 4 by 5e-6, tiles of 5 by 1e-5.
In float64 the same code is right to 1e-13, so that what is left in float32 is rounding alone.
"""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fnet_jax.kernels import convolution, reference, winograd
from tests.kernels import cases

TOLERANCE = {4: 1e-5, 5: 2e-5}
convolve = jax.jit(winograd.convolve, static_argnums=2)
kernel_gradient = jax.jit(winograd.kernel_gradient, static_argnums=2)
both_tiles = pytest.mark.parametrize("tile", [4, 5])
sides = st.integers(1, 11)


def arrays(seed, count, height, width, channels, features, dtype=np.float32):
    """x as after ReLU, a kernel that keeps its magnitude, and a cotangent."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(size=(count, height, width, channels)), 0)
    kernel = rng.normal(size=(3, 3, channels, features)) * (2 / 9 / channels) ** 0.5
    cotangent = rng.normal(size=(count, height, width, features))
    return x.astype(dtype), kernel.astype(dtype), cotangent.astype(dtype)


def assert_close(found, expected, tolerance):
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected)) <= tolerance * np.max(np.abs(expected))


def reference_kernel_gradient(x, cotangent):
    """The filter that `<convolve(x, kernel), cotangent>` is linear in."""
    _, height, width, _ = x.shape
    padded = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.array(
        [
            [
                np.einsum("nhwc,nhwd->cd", padded[:, i : i + height, j : j + width], cotangent)
                for j in range(3)
            ]
            for i in range(3)
        ]
    )


@both_tiles
@cases.settings
@hypothesis.given(cases.seeds, st.integers(1, 3), sides, sides)
def test_any_size(tile, seed, count, height, width):
    """Smaller than a tile, whole tiles and odd rests."""
    x, kernel, cotangent = arrays(seed, count, height, width, 3, 4)
    found = convolve(x, kernel, tile)
    assert found.dtype == np.float32
    assert_close(found, reference.convolve(x, kernel), TOLERANCE[tile])
    found = kernel_gradient(x, cotangent, tile)
    assert found.dtype == np.float32
    expected = reference_kernel_gradient(x, cotangent)
    # Cancellation can leave a gradient much smaller than its terms: the terms set the scale.
    scale = reference_kernel_gradient(np.abs(x), np.abs(cotangent)).max()
    assert np.max(np.abs(found - expected)) <= TOLERANCE[tile] * scale


@both_tiles
@pytest.mark.parametrize("count, side", [(40, 5), (12, 7), (1, 37)])
def test_wide(tile, count, side):
    """As many channels as the model has, where the sums are longest."""
    x, kernel, cotangent = arrays(0, count, side, side, 512, 64)
    found = convolve(x, kernel, tile)
    assert_close(found, reference.convolve(x, kernel), TOLERANCE[tile])
    found = kernel_gradient(x, cotangent, tile)
    assert_close(found, reference_kernel_gradient(x, cotangent), TOLERANCE[tile])


@both_tiles
def test_exact_but_for_rounding(tile):
    with jax.enable_x64(True):
        x, kernel, cotangent = arrays(1, 2, 9, 14, 5, 3, np.float64)
        found = convolve(x, kernel, tile)
        assert found.dtype == np.float64
        assert_close(found, reference.convolve(x, kernel), 1e-13)
        found = kernel_gradient(x, cotangent, tile)
        assert_close(found, reference_kernel_gradient(x, cotangent), 1e-13)


@both_tiles
def test_chunks_do_not_matter(tile, monkeypatch):
    """Several chunks, the last of them filled up with tiles that do not exist."""
    x, kernel, cotangent = map(jnp.asarray, arrays(2, 3, 13, 9, 4, 6))
    expected = winograd.convolve(x, kernel, tile)
    gradient = winograd.kernel_gradient(x, cotangent, tile)
    monkeypatch.setattr(winograd, "_CHUNK", 5)
    assert winograd._chunks(x.shape, tile).size > winograd.tile_count(x.shape, tile)
    assert_close(winograd.convolve(x, kernel, tile), expected, 1e-6)
    assert_close(winograd.kernel_gradient(x, cotangent, tile), gradient, 1e-6)


@both_tiles
def test_vmap_equals_a_loop(tile):
    x, kernel, cotangent = map(jnp.asarray, arrays(3, 2, 6, 9, 3, 4))

    def one(x, cotangent):
        return (
            winograd.convolve(x[None], kernel, tile),
            winograd.kernel_gradient(x[None], cotangent[None], tile),
        )

    together = jax.jit(jax.vmap(one))(x, cotangent)
    for i in range(len(x)):
        for found, expected in zip(together, one(x[i], cotangent[i]), strict=True):
            assert_close(found[i], expected, TOLERANCE[tile])


@pytest.mark.parametrize(
    "shape, features, tile",
    [
        ((1, 600, 800, 64), 64, None),  # VGG16
        ((1, 300, 400, 128), 128, None),
        ((1, 150, 200, 128), 256, 4),
        ((1, 37, 50, 512), 512, 4),
        ((256, 5, 5, 512), 512, 5),  # subgraphs
        ((256, 7, 7, 512), 512, 4),
        ((1, 9, 13, 512), 512, None),  # few tiles
        ((160, 7, 7, 128), 64, None),  # configs/shapes.py
        ((1, 10, 12, 128), 128, None),
    ],
)
def test_choice(shape, features, tile):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert convolution._winograd_tile(x, features) == tile
    assert convolution._winograd_tile(x.update(dtype=jnp.bfloat16), features) is None
