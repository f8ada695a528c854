"""The data-dependent start: every calibrated layer tells example images apart, the rest is kept."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnet_jax.backbone import LAYERS
from fnet_jax.calibrate import calibrate
from tests.small_model import random_model


@pytest.fixture(scope="module")
def calibrated():
    model, params = random_model()
    images = jnp.asarray(np.random.default_rng(3).standard_normal((3, 64, 80, 3)), jnp.float32)
    return model, params, calibrate(model, params, images), images


def test_every_filter_of_the_backbone_answers_with_mean_0_and_variance_1(calibrated):
    model, _, params, images = calibrated

    def answers(image):
        return model.apply(
            {"params": params},
            image,
            image.shape[:2],
            method=model.features,
            capture_intermediates=True,
        )[1]["intermediates"]["backbone"]

    outputs = jax.jit(jax.vmap(answers))(images)
    for name in LAYERS:
        (y,) = outputs[name]["__call__"]
        y = np.asarray(y).reshape(-1, y.shape[-1])
        np.testing.assert_allclose(y.mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(y.std(0), 1, atol=1e-2)


def test_only_the_layers_that_embed_are_changed(calibrated):
    _, before, after, _ = calibrated
    before, after = (flax.traverse_util.flatten_dict(x) for x in (before, after))
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    changed = {k[:2] if k[0] == "rpn" else k[:1] for k in before if (before[k] != after[k]).any()}
    assert changed == {
        ("backbone",),
        ("rpn", "conv"),
        ("object_fc",),
        ("subgraph_conv",),
        ("predicate_inference",),
    }
