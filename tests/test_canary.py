"""A miscompilation that would silently spoil results: jaxlib 0.10.2 fuses a reduce wrongly on CPU.

A sum of products under jit (jax issue 39103) comes out wrong by tens on values of order one, in
some sizes only. `pyproject.toml` excludes that version; this says so should another one follow.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


# 1000 is right on jaxlib 0.10.2, the other two are not.
@pytest.mark.parametrize("rows", [1000, 32_769, 40_000])
def test_fused_sum_of_products(rows):
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=(rows, 3)), rng.normal(size=(3, 3))

    @jax.jit
    def squared_norms(x, matrix):
        return jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(x)

    actual = squared_norms(x.astype(np.float32), matrix.astype(np.float32))
    expected = np.sum((x @ matrix.T) ** 2, axis=-1)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [64, 128, 512])
def test_gradient_like_sum_over_the_leading_axis(channels):
    """The other form it was reported in; right on jaxlib 0.10.2 in the sizes tried here."""
    rng = np.random.default_rng(0)
    a, g = rng.normal(size=(40, 38)), rng.normal(size=(40, 7, channels))
    compiled = jax.jit(lambda a, g: jnp.sum(a[:, None, :, None] * g[:, :, None, :], axis=0))
    actual = compiled(a.astype(np.float32), g.astype(np.float32))
    np.testing.assert_allclose(actual, np.einsum("nh,npc->phc", a, g), rtol=1e-4, atol=1e-4)
