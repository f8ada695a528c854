"""F-Net on VRD (100 object and 70 predicate classes), the published recipe.

    python main.py --config configs/vrd.py --mode train --workdir runs/vrd \\
        --config.dataset.manual_dir=/path/to/vrd --config.train.init_from=vgg16.pth

Published with the original code: relationship recall@50 19.453, @100 24.640
(paper: relationship recall@50 18.32, phrase recall@50 26.03).

The anchors are part of the recipe: F-Net's `kmeans_anchors.json` for this dataset, put beside its
annotations before it is built, or clustered anew with --mode anchors. Without either they are those
of Visual Genome.

The proposal network can be trained first (its own recipe: 15 epochs, a step every 5), with the
same command and

    --workdir runs/vrd_rpn --config.train.stage=rpn --config.train.epochs=15 \\
        --config.train.lr_decay_epochs=5

and then the whole: --config.train.stage=from_rpn --config.train.init_from=runs/vrd_rpn
"""

from fnet_jax.configs import base


def get_config():
    """Returns the configuration of this experiment."""
    config = base.get_config()
    config.dataset.name = "vrd"
    return config
