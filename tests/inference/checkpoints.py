"""A checkpoint as training leaves it, of a small network with random weights."""

import pathlib

import numpy as np

from fnet_jax import builder, checkpoint
from fnet_jax.configs import shapes
from fnet_jax.experiment import describe
from fnet_jax.model import param_shapes
from tests.small_model import random_like

OBJECTS = ("background", "cat", "dog", "hat")
PREDICATES = ("background", "on", "near")


def small_config():
    """A config whose network and images are small; two sizes of images."""
    config = shapes.get_config()
    config.image.test_scale, config.image.max_size = 64, 96
    config.image.buckets = ((64, 96), (96, 64))
    config.anchors.scales, config.anchors.ratios = (12.0, 20.0), (1.0, 1.0)
    model = config.model
    model.vgg_widths = (4,) * 12 + (8,)
    model.dim_rpn, model.pool_size = 8, 2
    model.dim_object = model.dim_subgraph = model.dim_predicate = model.dim_attention = 32
    model.rank_embeddings = 48
    model.subgraph_capacities = (64,)
    config.train.object_batch = 16
    config.test.pre_nms, config.test.post_nms, config.test.max_objects = 48, 24, 12
    config.test.min_size = 2.0
    return config


def save_random(workdir: pathlib.Path, config=None) -> pathlib.Path:
    """Writes the best checkpoint of a run that never took place; returns the workdir."""
    config = config or small_config()
    model = builder.build_model(config, len(OBJECTS), len(PREDICATES))
    saved = checkpoint.Checkpoint(
        step=7,
        epoch=1,
        params=random_like(param_shapes(model)),
        optimizer={"count": np.zeros(())},
        data_states=[],
        stage=config.train.stage,
        metadata=describe(config, model, OBJECTS, PREDICATES),
    )
    checkpoints = checkpoint.Checkpoints(workdir)
    checkpoints.save(checkpoint.BEST, saved)
    checkpoints.close()
    return workdir
