"""VRD in small pictures with a narrow network: minutes an epoch on a CPU, no ImageNet weights.

    python main.py --config configs/vrd_small.py --mode train --workdir runs/vrd_small \\
        --config.dataset.manual_dir=/path/to/vrd
"""

from fnet_jax.configs import shapes


def get_config():
    """Returns the configuration of this experiment."""
    config = shapes.get_config()
    config.dataset.name = "vrd"
    config.dataset.validation_split = "test"
    config.dataset.num_workers = 1
    config.image.train_scales = (144,)
    config.image.test_scale = 144
    config.image.max_size = 208
    config.image.buckets = ((144, 208), (208, 144))

    # Sides of 16 to 160 px at the test scale, wide to tall.
    sides, ratios = (16, 32, 64, 110, 160), (0.4, 1.0, 2.5)
    config.anchors.scales = tuple(
        s / 16 * 600 / config.image.test_scale for s in sides for _ in ratios
    )
    config.anchors.ratios = ratios * len(sides)
    config.rpn_train.min_size = config.test.min_size = 8.0
    config.test.post_nms, config.test.max_objects = 100, 40
    config.test.self_pairs = True
    config.train.object_batch, config.train.relation_batch = 64, 128
    config.model.subgraph_capacities = (64, 128, 256)
    config.train.epochs = 2
    config.train.eval_every_epochs = 1
    config.train.eval_images = 200
    return config
