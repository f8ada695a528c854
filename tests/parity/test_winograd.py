"""The golden models again with Winograd in every convolution: they are too narrow to choose it."""

import pytest

from fnet_jax.kernels import convolution, winograd
from tests.parity.golden_models import NAMES
from tests.parity.test_model import (  # noqa: F401
    test_backbone,
    test_from_image,
    test_graph_stage,
    test_pooled_features,
    test_rpn,
)
from tests.parity.test_training import (  # noqa: F401
    test_gradients,
    test_gradients_in_double_precision,
    test_losses,
)

pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """Every layer uses Winograd; a test in which none does proves nothing, and fails."""
    monkeypatch.setattr(convolution, "_WIDE", 0)
    monkeypatch.setattr(convolution, "_MANY", 0)
    used = []
    convolve = winograd.convolve

    def counted(x, kernel, tile):
        used.append(tile)
        return convolve(x, kernel, tile)

    monkeypatch.setattr(winograd, "convolve", counted)
    yield
    assert used
