"""F-Net on VG-DR-Net (399 object and 24 predicate classes), the published recipe.

    python main.py --config configs/vg_dr_net.py --mode train --workdir runs/vg_dr_net \\
        --config.dataset.manual_dir=/path/to/svg --config.train.init_from=vgg16.pth

Published with the original code: relationship recall@50 19.807, @100 25.488
(paper: relationship recall@50 19.88, phrase recall@50 26.91).

The anchors are part of the recipe: F-Net's `kmeans_anchors.json` for this dataset, put beside its
annotations before it is built, or clustered anew with --mode anchors. Without either they are those
of Visual Genome.

The proposal network can be trained first (its own recipe: 12 epochs, a step every 3), with the
same command and

    --workdir runs/vg_dr_net_rpn --config.train.stage=rpn --config.train.epochs=12 \\
        --config.train.lr_decay_epochs=3

and then the whole: --config.train.stage=from_rpn --config.train.init_from=runs/vg_dr_net_rpn
"""

from fnet_jax.configs import base


def get_config():
    """Returns the configuration of this experiment."""
    config = base.get_config()
    config.dataset.name = "vg_dr_net"
    config.model.geometry = "v1"
    config.model.bottleneck = False
    return config
