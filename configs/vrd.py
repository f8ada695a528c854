"""F-Net on VRD (100 object and 70 predicate classes), the published recipe.

    python main.py --config configs/vrd.py --mode train --workdir runs/vrd \\
        --config.dataset.manual_dir=/path/to/vrd --config.train.init_from=vgg16.pth

Published with the original code: relationship recall@50 19.453, @100 24.640
(paper: relationship recall@50 18.32, phrase recall@50 26.03).
To start from a trained RPN add `--config.train.stage=from_rpn --config.train.init_from=RPN.h5`.
"""

from fnet_jax.configs import base


def get_config():
    """Returns the configuration of this experiment."""
    config = base.get_config()
    config.dataset.name = "vrd"
    return config
