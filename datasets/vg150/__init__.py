"""`vg150`: Visual Genome with 150 object classes and 50 predicates, the field's usual split."""

from fnet_jax.datasets.vg150.builder import Vg150

__all__ = ["Vg150"]
