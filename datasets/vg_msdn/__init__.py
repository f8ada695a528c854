"""`vg_msdn`: Visual Genome as cleansed for MSDN, with region captions."""

from fnet_jax.datasets.vg_msdn.builder import VgMsdn

__all__ = ["VgMsdn"]
