"""`vrd`: Visual Relationship Detection photos, or any photos annotated in its format."""

from fnet_jax.datasets.vrd.builder import Vrd

__all__ = ["Vrd"]
