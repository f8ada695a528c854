"""The convolution against the NumPy reference; its gradients against the adjoint."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from fnet_jax import kernels
from fnet_jax.kernels import convolution, reference
from tests.kernels import cases

sides = st.integers(1, 6)


def arrays(seed, height, width, count=2, channels=3, features=4):
    rng = np.random.default_rng(seed)
    shapes = (
        (count, height, width, channels),
        (3, 3, channels, features),
        (count, height, width, features),
    )
    return (rng.normal(size=shape).astype(np.float32) for shape in shapes)


@cases.settings
@hypothesis.given(cases.seeds, sides, sides)
def test_forward(seed, height, width):
    x, kernel, _ = arrays(seed, height, width)
    result = jax.jit(kernels.convolve)(x, kernel)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, reference.convolve(x, kernel), rtol=1e-5, atol=1e-5)


@cases.settings
@hypothesis.given(cases.seeds, sides, sides)
def test_gradients_are_the_adjoints(seed, height, width):
    """Linear in each argument: <convolve(x, k), g> = <x, dx> = <k, dk> for unit impulses."""
    x, kernel, g = arrays(seed, height, width)
    dx, dk = jax.jit(lambda x, k, g: jax.vjp(kernels.convolve, x, k)[1](g))(x, kernel, g)
    impulses = np.eye(kernel.size).reshape(kernel.size, *kernel.shape)
    expected = [np.sum(reference.convolve(x, impulse) * g) for impulse in impulses]
    np.testing.assert_allclose(dk, np.reshape(expected, dk.shape), rtol=1e-5, atol=1e-4)
    impulses = np.eye(x[0].size).reshape(-1, *x[0].shape)
    answers = reference.convolve(impulses, kernel)
    expected = np.einsum("ehwd,nhwd->ne", answers, g).reshape(x.shape)
    np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "gradient", [convolution._shifted_products, convolution._builtin_kernel_gradient]
)
def test_both_gradients_of_the_filter(gradient):
    """CPU uses the first and other devices the second: here both run."""
    x, kernel, g = arrays(0, 7, 5)
    expected = jax.vjp(
        lambda k: jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        kernel,
    )[1](g)[0]
    np.testing.assert_allclose(jax.jit(gradient)(x, g), expected, rtol=1e-5, atol=1e-5)


def test_vmap_equals_a_loop():
    x, kernel, g = arrays(1, 6, 5)

    def gradients(x, g):
        return jax.vjp(kernels.convolve, x[None], kernel)[1](g[None])

    together = jax.jit(jax.vmap(gradients))(x, g)
    for i in range(len(x)):
        for a, b in zip(together, gradients(x[i], g[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)
