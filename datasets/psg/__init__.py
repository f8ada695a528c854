"""`psg`: panoptic scene graphs on COCO photos, read as boxes."""

from fnet_jax.datasets.psg.builder import Psg

__all__ = ["Psg"]
