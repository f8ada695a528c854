"""The small golden models.

Their sizes come from `model_config.json`, their weights from `model_*.h5`.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from fnet_jax.anchors import base_anchors
from fnet_jax.detect import ProposalOptions, TestOptions
from fnet_jax.model import FactorizableNet
from fnet_jax.weights import load_checkpoint
from tests.conftest import golden_dir

NAMES = tuple(sorted(json.loads((golden_dir() / "model_config.json").read_text())))


@functools.cache
def options(name: str) -> dict:
    return json.loads((golden_dir() / "model_config.json").read_text())[name]


@functools.cache
def arrays(kind: str, name: str) -> dict:
    with np.load(golden_dir() / f"{kind}_{name}.npz") as content:
        return dict(content)


@functools.cache
def network(name: str):
    """(model, params) of a golden model."""
    o = options(name)
    scales = np.array(o["anchor_scales_kmeans"]) / 600 * o["test_scale"]
    base = base_anchors(scales, o["anchor_ratios_kmeans"])
    model = FactorizableNet(
        num_object_classes=o["n_classes_obj"],
        num_predicate_classes=o["n_classes_pred"],
        base_anchors=tuple(map(tuple, base.tolist())),
        vgg_widths=tuple(o["vgg_widths"]),
        dim_rpn=o["rpn_conv1_dim"],
        pool_size=o["pool_size"],
        dim_object=o["dim_ho"],
        dim_subgraph=o["dim_hr"],
        dim_predicate=o["dim_hp"],
        dim_attention=o["dim_mm"],
        message_passing_steps=o["MPS_iter"],
        relation_module=o["arch"] == "FN_v4s",
        geometry=o["geometry"].rsplit("_", 1)[1],
        fusion=o["op"].lower(),
        bottleneck=o["bottleneck"],
        use_bias=o["use_bias"],
        dropout=o["dropout"],
        rank_embeddings=o["rank_embeddings"],
    )
    image = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)
    template = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return model, load_checkpoint(golden_dir() / f"model_{name}.h5", template)


def capacities(subgraphs: int) -> tuple[int, int]:
    """Too few slots for so many subgraphs, then more than enough: both branches are compiled."""
    return subgraphs - 1, subgraphs + 9


def test_options(name: str, mode: str) -> TestOptions:
    """Options of detection as a golden model was run in a mode, "nogt_" or "gt_"."""
    o = options(name)
    rpn = o["rpn_test"]
    return TestOptions(
        proposals=ProposalOptions(
            pre_nms=rpn["num_box_pre_NMS"],
            post_nms=rpn["num_box_post_NMS"],
            nms_threshold=rpn["nms_thres"],
            min_size=rpn["min_size"],
        ),
        max_objects=o["TEST_BBOX_NUM"],
        subgraph_nms=o["TEST_REGION_NMS_THRES"],
        subgraph_capacities=capacities(int(arrays("model", name)[mode + "n_regions"])),
        use_gt_boxes=mode == "gt_",
        predicates_per_pair=o["interpret_topk"],
    )


test_options.__test__ = False  # a helper, whatever its name says


def call(name: str, method, *args, **kwargs):
    """Runs `method(model, ...)` of a golden model, jitted."""
    model, params = network(name)
    return jax.jit(lambda p, a: model.apply({"params": p}, *a, method=method, **kwargs))(
        params, args
    )


def last_step(name: str) -> str:
    """Prefix of the arrays behind the last step of message passing."""
    return f"mps{options(name)['MPS_iter'] - 1}_"


def assert_close(actual, expected, tolerance: float, what: str):
    """|difference| <= tolerance * max(1, largest |expected|)."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: {actual.shape} for {expected.shape}"
    error = np.max(np.abs(actual - expected), initial=0.0)
    limit = tolerance * max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    assert error <= limit, f"{what}: off by {error:.3g}, allowed {limit:.3g}"
