"""The golden models again with Winograd in every convolution: they are too narrow to choose it."""

import jax
import jax.numpy as jnp
import pytest

from fnet_jax.kernels import convolution, winograd
from tests.parity import test_training
from tests.parity.golden_models import NAMES, network
from tests.parity.test_model import (  # noqa: F401
    test_backbone,
    test_graph_stage,
    test_rpn,
)

pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    monkeypatch.setattr(convolution, "_WIDE", 0)
    monkeypatch.setattr(convolution, "_MANY", 0)


@pytest.mark.slow
def test_gradients_in_double_precision(name, tmp_path):
    test_training.test_gradients_in_double_precision(name, tmp_path)


def test_every_layer_uses_it(name, monkeypatch):
    """Without this the tests above and below would prove nothing."""
    model, params = network(name)
    tiles = []
    convolve = winograd.convolve
    monkeypatch.setattr(
        winograd,
        "convolve",
        lambda x, kernel, tile: tiles.append(tile) or convolve(x, kernel, tile),
    )
    image = jax.ShapeDtypeStruct((64, 96, 3), jnp.float32)
    jax.eval_shape(lambda image: model.apply({"params": params}, image), image)
    # Thirteen layers of VGG16, one of the RPN, two of the subgraphs.
    assert len(tiles) == 16
    assert set(tiles) == ({4, 5} if model.pool_size == 5 else {4})
