"""Sine and cosine against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnet_jax.kernels import sincos


def errors(x):
    sine, cosine = jax.jit(sincos)(x)
    assert sine.dtype == cosine.dtype == x.dtype
    exact = np.float64(x)
    return np.abs(sine - np.sin(exact)).max(), np.abs(cosine - np.cos(exact)).max()


@pytest.mark.parametrize("limit", [1.0, 100.0, 10_000.0])
def test_error_over_a_range(limit):
    x = np.random.default_rng(0).uniform(-limit, limit, 1_000_000).astype(np.float32)
    assert max(errors(x)) < 2e-7


def test_around_the_quarters():
    """Where sine and cosine change places, cross zero and peak."""
    quarters = np.arange(-2000, 2000) * (np.pi / 4)
    x = (quarters[:, None] + np.linspace(-1e-3, 1e-3, 21)).astype(np.float32)
    assert max(errors(x)) < 2e-7


def test_special_values():
    sine, cosine = sincos(jnp.array([0.0, -0.0, np.nan, np.inf], jnp.float32))
    np.testing.assert_array_equal(sine[:2], [0.0, 0.0])
    np.testing.assert_array_equal(cosine[:2], [1.0, 1.0])
    assert np.isnan(sine[2:]).all() and np.isnan(cosine[2:]).all()
