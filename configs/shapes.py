"""F-Net on the embedded `shapes` scenes: every part of the network, small enough for a CPU.

python main.py --config configs/shapes.py --mode train --workdir runs/shapes
"""

from fnet_jax.configs import base


def get_config():
    """Returns the configuration of this experiment."""
    config = base.get_config()
    config.dataset.name = "shapes"
    config.dataset.validation_split = "validation"
    config.dataset.num_workers = 0  # a batch is read faster than handed over

    image = config.image
    image.color_order = "rgb"
    # Scenes are 128 pixels high; enlarged, the smallest shapes cover three cells of the map.
    image.train_scales = (160,)
    image.test_scale = 160
    image.max_size = 200
    image.buckets = ((160, 200),)

    # Sides of 32, 45, 60 and 82 px at the test scale, wide to tall.
    sides = (32, 45, 60, 82)
    ratios = (0.7, 1.0, 1.4)
    config.anchors.scales = tuple(s / 16 * 600 / image.test_scale for s in sides for _ in ratios)
    config.anchors.ratios = ratios * len(sides)

    model = config.model
    model.vgg_widths = (8, 8, 16, 16, 48, 48, 48, 96, 96, 96, 128, 128, 128)
    model.dim_rpn = 128
    model.dim_object = model.dim_subgraph = model.dim_predicate = 64
    model.dim_attention = 64
    model.bottleneck = False
    model.subgraph_capacities = (64, 160)

    rpn = config.rpn_train
    rpn.pre_nms, rpn.post_nms = 1000, 200
    rpn.negative_overlap, rpn.positive_overlap = 0.35, 0.5
    rpn.batch_size = 128

    train = config.train
    train.stage = "from_scratch"
    train.frozen_backbone_layers = 0
    train.backbone_lr_factor = 1.0
    train.optimizer = "adam"
    train.learning_rate, train.lr_schedule = 8e-4, "cosine"
    train.epochs = 2
    train.weight_decay = 1e-5
    train.object_batch, train.relation_batch = 40, 80
    train.class_weights = False
    # Without ImageNet features the classes are what takes longest to learn.
    train.loss_weights.object_class = 4.0
    train.log_every_steps = 100
    train.eval_every_epochs = 2

    test = config.test
    test.pre_nms, test.post_nms, test.max_objects = 1000, 64, 32
    test.nms_threshold = 0.7
    test.self_pairs = False  # No drawn object is related to itself.
    return config
