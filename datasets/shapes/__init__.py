"""`shapes`: drawn scenes of overlapping shapes, generated on the spot."""

from fnet_jax.datasets.shapes.builder import Shapes

__all__ = ["Shapes"]
