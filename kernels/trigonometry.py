"""Sine and cosine together, by polynomials.

XLA:CPU calls the C library for each value: 10 ns a sine, and the relation module's geometry takes
ten million of them an image.
"""

import jax
import jax.numpy as jnp

# pi / 2 in three parts: products of the first with whole numbers below 2**16 are exact.
_HALF_PI = (1.5703125, 4.837512969970703125e-4, 7.54978995489188216e-8)
# Minimax polynomials on [-pi / 4, pi / 4] in powers of r**2 (coefficients of the Cephes library).
_SINE = (-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4)
_COSINE = (4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5)


def sincos(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sin x, cos x), elementwise.

    Args:
      x: any shape. In float32 the error is below 2e-7 for |x| < 10,000; further out it grows
        with |x|. Other dtypes take JAX's own functions.
    """
    if x.dtype != jnp.float32:
        return jnp.sin(x), jnp.cos(x)
    turns = jnp.round(x * jnp.float32(2.0 / jnp.pi))  # of a quarter
    r = x
    for part in _HALF_PI:
        r = r - turns * part
    square = r * r
    sine = r + r * square * _polynomial(square, _SINE)
    cosine = 1.0 - 0.5 * square + square * square * _polynomial(square, _COSINE)
    quarter = turns.astype(jnp.int32) & 3
    swapped = (quarter & 1) == 1
    result = jnp.where(swapped, cosine, sine), jnp.where(swapped, sine, cosine)
    negative = (quarter & 2) == 2, ((quarter + 1) & 2) == 2
    return tuple(jnp.where(n, -y, y) for n, y in zip(negative, result, strict=True))


def _polynomial(x, coefficients):
    """c0 + x * (c1 + x * (c2 + ...))."""
    total = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = coefficient + x * total
    return total
