"""A network of a few thousand numbers, and images to show it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fnet_jax.model import FactorizableNet

OBJECT_CLASSES, PREDICATES = 5, 4  # with background
WIDTH = 32  # the smallest that sixteen dropout groups and a bottleneck allow
ANCHORS = ((-8.0, -8.0, 23.0, 23.0), (-16.0, -24.0, 31.0, 39.0))
IMAGE = (64, 96)
MIN_SIZE = 4.0  # of proposals, in pixels of the original image
NO_PROPOSAL_SCALE = 100.0  # at which they would need 400 pixels
# A test program runs for milliseconds and compiles for seconds.
QUICK = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # Later versions know one way only.
    QUICK["xla_cpu_use_fusion_emitters"] = False


def small_model(**changes) -> FactorizableNet:
    fields = {
        "num_object_classes": OBJECT_CLASSES,
        "num_predicate_classes": PREDICATES,
        "base_anchors": ANCHORS,
        "vgg_widths": (4,) * 12 + (8,),
        "dim_rpn": 8,
        "pool_size": 2,
        "dim_object": WIDTH,
        "dim_subgraph": WIDTH,
        "dim_predicate": WIDTH,
        "dim_attention": WIDTH,
        "relation_module": True,
        "rank_embeddings": 32,
    }
    return FactorizableNet(**(fields | changes))


def random_like(shapes):
    """Random parameters of given shapes, large enough for every part of a network to matter."""
    rng = np.random.default_rng(0)

    def values(path, leaf):
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        spread = 0.1 if path[-1].key == "bias" else (2.0 / fan_in) ** 0.5
        return (spread * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(values, shapes)


def random_params(module, *args, **kwargs):
    """Random parameters of a Flax module called with `args`; compiles nothing."""
    variables = jax.eval_shape(lambda key: module.init(key, *args, **kwargs), jax.random.key(0))
    return random_like(variables["params"])


@functools.cache
def random_model(**changes):
    """(model, params); the same arrays for every caller."""
    model = small_model(**changes)
    return model, random_params(model, jnp.zeros((32, 32, 3)))


def example(
    seed: int = 0, size=(60, 90), scale: float = 1.25, slots: int = 4
) -> dict[str, np.ndarray]:
    """One padded image with two annotated objects, related once; the other slots are unused."""
    rng = np.random.default_rng(seed)
    height, width = size
    gt_boxes = np.zeros((slots, 4), np.float32)
    gt_boxes[:2] = [[2, 3, 40, 50], [30, 10, 80, 55]]
    classes = np.zeros(slots, np.int32)
    classes[:2] = 1, 2
    relationships = np.zeros((slots, slots), np.int32)
    relationships[0, 1] = 2
    return {
        "image": rng.integers(0, 256, (*IMAGE, 3)).astype(np.uint8),
        "im_info": np.array([height, width, scale, height / scale, width / scale], np.float32),
        "gt_boxes": gt_boxes,
        "gt_classes": classes,
        "gt_relationships": relationships,
    }


def assert_finite(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
