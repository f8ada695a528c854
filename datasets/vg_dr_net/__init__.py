"""`vg_dr_net`: Visual Genome as cleansed for DR-Net, in F-Net's conversion."""

from fnet_jax.datasets.vg_dr_net.builder import VgDrNet

__all__ = ["VgDrNet"]
