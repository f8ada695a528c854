"""Factorizable Net in JAX: scene graphs from images."""

from fnet_jax.model import FactorizableNet

__all__ = ["FactorizableNet"]
