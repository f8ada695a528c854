"""Six annotated real photos, learned by heart: does the network learn from pixels?

python -m fnet_jax.datasets.photos.prepare data/photos
python main.py --config configs/photos.py --mode train --workdir runs/photos
"""

from fnet_jax.configs import shapes


def get_config():
    """Returns the configuration of this experiment."""
    config = shapes.get_config()
    config.dataset.name = "vrd"
    config.dataset.data_dir = "data/photos_built"
    config.dataset.manual_dir = "data/photos"
    config.dataset.validation_split = "test"
    config.image.train_scales = (192,)
    config.image.test_scale = 192
    config.image.max_size = 304
    config.image.buckets = ((192, 304),)

    # Objects from 16 pixels to the whole picture.
    config.anchors.kind = "normal"
    config.rpn_train.min_size = 4.0
    config.test.min_size = 4.0
    config.rpn_train.batch_size = 256
    config.test.post_nms, config.test.max_objects = 100, 40
    config.train.epochs = 400
    config.train.lr_schedule, config.train.lr_decay_epochs = "step", 300
    config.train.eval_every_epochs = 100
    return config
