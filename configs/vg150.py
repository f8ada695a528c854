"""F-Net on VG150 (150 object and 50 predicate classes), with the recipe published for VRD.

    python main.py --config configs/vg150.py --mode anchors \\
        --config.dataset.manual_dir=/path/to/vg150
    python main.py --config configs/vg150.py --mode train --workdir runs/vg150 \\
        --config.dataset.manual_dir=/path/to/vg150 --config.train.init_from=vgg16.pth

No figure of F-Net on VG150 was ever published, and none has been measured here. Backbone (VGG16),
architecture (v4s) and schedule are those of the published recipe; data handling is the field's:
relationships of boxes that do not overlap are left out of training, and of several predicates of a
pair one is drawn each time.
"""

from fnet_jax.configs import base


def get_config():
    """Returns the configuration of this experiment."""
    config = base.get_config()
    config.dataset.name = "vg150"
    config.dataset.validation_split = "validation"
    config.train.overlapping_pairs_only = True
    config.train.pair_predicate = "random"
    return config
