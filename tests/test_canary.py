"""A miscompilation that would silently spoil results: jaxlib 0.10.2 fuses a reduce wrongly on CPU.

The sum over the leading axis of an outer product, 128 channels or more, came out wrong by tens on
values of order one. `pyproject.toml` excludes that version; this says so should another follow.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.mark.parametrize("channels", [128, 256])
def test_leading_axis_reduce_of_an_outer_product(channels):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 7, channels)).astype(np.float32)
    g = rng.normal(size=(40, 5, channels)).astype(np.float32)
    compiled = jax.jit(lambda a, g: jnp.sum(a[:, :, None, :] * g[:, None, :, :], axis=0))(a, g)
    expected = np.einsum("npc,nqc->pqc", a.astype(np.float64), g)
    np.testing.assert_allclose(compiled, expected, rtol=1e-4, atol=1e-4)
