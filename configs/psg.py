"""F-Net on PSG (133 object and 56 predicate classes), as boxes, with the recipe published for VRD.

    python main.py --config configs/psg.py --mode anchors --config.dataset.manual_dir=/path/to/psg
    python main.py --config configs/psg.py --mode train --workdir runs/psg \\
        --config.dataset.manual_dir=/path/to/psg --config.train.init_from=vgg16.pth

No figure of F-Net on PSG was ever published, and none has been measured here. Backbone (VGG16),
architecture (v4s) and schedule are those of the published recipe; of several predicates of a pair
one is drawn each time.
"""

from fnet_jax.configs import base


def get_config():
    """Returns the configuration of this experiment."""
    config = base.get_config()
    config.dataset.name = "psg"
    config.train.pair_predicate = "random"
    return config
