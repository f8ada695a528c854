"""The Pallas kernel: the tests of `nms` once more, interpreted; and lowering for GPU and TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from fnet_jax import kernels
from fnet_jax.kernels import reference
from tests.kernels import cases
from tests.kernels import test_nms as bodies
from tests.kernels.test_nms import (  # noqa: F401  collected here again
    test_a_suppressed_box_does_not_suppress,
    test_many_blocks,
    test_nms,
    test_nothing_valid_and_nothing_there,
    test_padding_changes_nothing,
    test_suppression_is_strictly_above_the_threshold,
    test_vmap_equals_a_loop,
)

# platform: (device, what the lowered kernel calls)
ACCELERATORS = {
    "cuda": (AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu"), "__gpu$xla.gpu.triton"),
    "tpu": (AbstractDevice("TPU v5e", 1, "tpu"), "tpu_custom_call"),
}

pallas_nms = functools.partial(kernels.nms, implementation="pallas")


@functools.partial(jax.jit, static_argnames="max_output")
def jitted_nms(boxes, scores, threshold, max_output, mask=None):
    return pallas_nms(boxes, scores, threshold, max_output, mask=mask)


@pytest.fixture(autouse=True, scope="module")
def pallas_in_the_bodies():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "nms", jitted_nms)
        patch.setattr(kernels, "nms", pallas_nms)
        yield


def test_blocks_of_this_kernel():
    """More than its 1024 candidates a block: the kept list is read back, slots fill up midway."""
    rng = np.random.default_rng(4)
    boxes = cases.crowd(rng, 2500, places=60)
    scores, mask = cases.eighths(rng.integers(0, 9, 2500)), rng.random(2500) < 0.9
    expected = reference.nms(boxes, scores, 0.5, 2500, mask=mask)
    order = np.argsort(np.where(mask, -scores, np.inf), kind="stable").tolist()
    last = order.index(expected[-1])
    assert last > 2048
    bodies.check(jitted_nms(boxes, scores, 0.5, 2500, mask), expected)
    bodies.check(jitted_nms(boxes, scores, 0.5, 200, mask), expected[:200])


def lowered(platform, run, batch=()):
    """StableHLO of `run(boxes, scores)` at the model's size, without a device of the platform."""
    shapes = [jax.ShapeDtypeStruct((*batch, 12000, *x), jnp.float32) for x in ((4,), ())]
    device, _ = ACCELERATORS[platform]
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        return jax.jit(run).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ACCELERATORS)
def test_lowers_to_one_kernel(platform):
    _, call = ACCELERATORS[platform]

    def run(boxes, scores):
        return pallas_nms(boxes, scores, 0.7, 2000)

    for text in (lowered(platform, run), lowered(platform, jax.vmap(run), batch=(2,))):
        assert text.count(f"custom_call @{call}(") == 1
        assert "stablehlo.while" not in text


@pytest.mark.parametrize("platform", ACCELERATORS)
def test_the_default_is_xla(platform):
    text = lowered(platform, lambda *x: kernels.nms(*x, 0.7, 2000, implementation=None))
    _, call = ACCELERATORS[platform]
    assert call not in text
    assert "stablehlo.while" in text


def test_unknown_implementation():
    with pytest.raises(ValueError, match="'cuda'"):
        kernels.nms(np.zeros((1, 4)), np.zeros(1), 0.5, 1, implementation="cuda")
