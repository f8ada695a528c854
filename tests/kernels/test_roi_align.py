"""ROI-align against the NumPy reference, sample by sample; its gradient against the adjoint."""

import functools
import importlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from fnet_jax import kernels
from fnet_jax.kernels import reference
from tests.kernels import cases

SCALE = 1 / 16
POOL = 3
roi_align = functools.partial(kernels.roi_align, pool_size=POOL, spatial_scale=SCALE)
jitted = jax.jit(roi_align)

# Sums of at most four weights times values of order one, in float32.
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def features(seed=0, height=7, width=9, channels=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(height, width, channels)).astype(np.float32)


# Whole pixels whose cells are exact: on the outside test's edge both sides must decide alike.
special_rois = np.array(
    [
        [0, 0, 143, 111],  # the whole map
        [-200, -150, 300, 280],  # beyond it on every side
        [32, 32, 32, 32],  # no size: forced to one cell
        [40, 40, 41, 42],  # below one cell
        [90, 80, 20, 10],  # inverted
        [-40, -40, -24, -24],  # ends at the last row and column that count
        [400, 400, 500, 500],  # right of and below everything
        [-500, -500, -400, -400],
        [0, 0, 143, 2],  # thin stripes
        [60, 0, 61, 111],
        [-3000, -300, 5000, 500],  # over a hundred samples a bin, few of which count
    ],
    np.float32,
)


def test_special_rois():
    x = features()
    pooled = jitted(x, special_rois)
    assert pooled.shape == (len(special_rois), POOL, POOL, x.shape[-1])
    assert pooled.dtype == np.float32
    close(pooled, reference.roi_align(x, special_rois, pool_size=POOL, spatial_scale=SCALE))


coordinates = st.integers(-600, 1600).map(lambda eighth: eighth / 8 + 1 / 1024)


@cases.settings
@hypothesis.given(st.lists(st.tuples(*[coordinates] * 4), min_size=5, max_size=5))
def test_any_rois(rois):
    """Offset by 1/1024 pixel: no sample lies where it just counts and rounding decides."""
    x, rois = features(), np.array(rois, np.float32)
    close(jitted(x, rois), reference.roi_align(x, rois, pool_size=POOL, spatial_scale=SCALE))


def test_more_rois_than_a_chunk():
    rng = np.random.default_rng(1)
    x, rois = features(), rng.uniform(-20, 160, (53, 4)).astype(np.float32)
    close(jitted(x, rois), reference.roi_align(x, rois, pool_size=POOL, spatial_scale=SCALE))


def test_every_backend_has_the_same_result(monkeypatch):
    """The CPU has a form of its own; that of the others runs here in its place."""
    expected = jitted(features(), special_rois)
    module = importlib.import_module("fnet_jax.kernels.roi_align")
    monkeypatch.setattr(module, "_by_taps", module._dense)
    close(jax.jit(lambda *args: roi_align(*args))(features(), special_rois), expected)


def test_many_taps():
    """A bin of all cells, beside ROIs that need fewer steps."""
    x = features(height=23, width=31)
    rois = np.array([[0, 0, 495, 367], [16, 16, 40, 360], [100, 50, 480, 70], [5, 5, 9, 9]])
    pool = functools.partial(roi_align, pool_size=1)
    expected = reference.roi_align(x, rois, pool_size=1, spatial_scale=SCALE)
    close(jax.jit(pool)(x, rois.astype(np.float32)), expected)


def test_no_rois():
    assert roi_align(features(), np.zeros((0, 4), np.float32)).shape == (0, POOL, POOL, 4)


def test_padding_changes_nothing():
    x = features()
    padded = np.pad(x, [(0, 4), (0, 6), (0, 0)], constant_values=1e6)
    bare = jitted(x, special_rois)
    with_size = jax.jit(lambda x, rois, h, w: roi_align(x, rois, features_size=(h, w)))
    size = np.int32(x.shape[0]), np.int32(x.shape[1])
    close(with_size(padded, special_rois, *size), bare)
    # Padding ROIs, whatever they hold, leave the others alone.
    more = np.concatenate([special_rois, np.full((30, 4), 50, np.float32)])
    close(jitted(x, more)[: len(special_rois)], bare)


def test_gradient_is_the_adjoint():
    """The map is linear in the features: <pool(x), g> = <x, grad(g)> for every x defines grad."""
    rng = np.random.default_rng(2)
    rois = rng.uniform(-20, 160, (40, 4)).astype(np.float32)
    cotangent = rng.normal(size=(40, POOL, POOL, 4)).astype(np.float32)
    _, backward = jax.vjp(jitted, features(), rois)
    gradient, rois_gradient = backward(cotangent)
    gradient = np.asarray(gradient, np.float64)
    # One unit impulse a cell, in all channels at once, reads the whole gradient off the reference.
    impulses = np.eye(7 * 9, dtype=np.float32).reshape(7, 9, 63)
    weights = reference.roi_align(impulses, rois, pool_size=POOL, spatial_scale=SCALE)
    expected = np.einsum("npqk,npqc->kc", weights, cotangent).reshape(7, 9, 4)
    close(gradient, expected)
    assert not np.any(rois_gradient)


def test_gradient_ignores_padding():
    cotangent = features(3, POOL, POOL)[None]
    padded = np.pad(features(), [(0, 4), (0, 6), (0, 0)])
    rois = special_rois[:1]

    def gradient_at(x, size):
        pool = jax.jit(functools.partial(roi_align, rois=rois, features_size=size))
        return jax.vjp(pool, x)[1](cotangent)[0]

    bare, gradient = gradient_at(features(), None), gradient_at(padded, (7, 9))
    close(gradient[:7, :9], bare)
    assert not np.any(gradient[7:]) and not np.any(gradient[:, 9:])


def test_vmap_equals_a_loop():
    x = np.stack([features(seed) for seed in range(2)])
    rois = np.stack([special_rois, special_rois[::-1]])

    def loss(x, rois):
        return jnp.sum(roi_align(x, rois) ** 2)

    value_and_grad = jax.value_and_grad(loss)
    values, gradients = jax.jit(jax.vmap(value_and_grad))(x, rois)
    for i in range(2):
        value, gradient = jax.jit(value_and_grad)(x[i], rois[i])
        close(values[i], value)
        close(gradients[i], gradient)
