"""F-Net on VG-MSDN (150 object and 50 predicate classes), the published recipe.

    python main.py --config configs/vg_msdn.py --mode train --workdir runs/vg_msdn \\
        --config.dataset.manual_dir=/path/to/visual_genome --config.train.init_from=vgg16.pth

Published with the original code: relationship recall@50 12.984, @100 16.506
(paper: relationship recall@50 13.06, phrase recall@50 22.84).

The proposal network can be trained first (its own recipe: 12 epochs, a step every 3), with the
same command and

    --workdir runs/vg_msdn_rpn --config.train.stage=rpn --config.train.epochs=12 \\
        --config.train.lr_decay_epochs=3

and then the whole: --config.train.stage=from_rpn --config.train.init_from=runs/vg_msdn_rpn
"""

from fnet_jax.configs import base


def get_config():
    """Returns the configuration of this experiment."""
    config = base.get_config()
    config.dataset.name = "vg_msdn"
    config.image.train_scales = (500, 550, 600, 600, 650, 700)
    config.model.relation_module = False
    config.model.pool_size = 7
    config.rpn_train.negative_overlap = 0.35
    config.rpn_train.positive_overlap = 0.5
    config.train.epochs = 10
    config.train.lr_decay_epochs = 2
    return config
