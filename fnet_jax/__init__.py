"""Factorizable Net in JAX: scene graphs from images."""

from fnet_jax.model import FactorizableNet
from fnet_jax.weights import load_checkpoint

__all__ = ["FactorizableNet", "load_checkpoint"]
