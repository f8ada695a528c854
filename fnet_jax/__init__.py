"""Factorizable Net in JAX: scene graphs from images."""

import importlib

_HOMES = {
    "FactorizableNet": "fnet_jax.model",
    "SceneGraph": "fnet_jax.inference.scene_graph",
    "SceneGraphPredictor": "fnet_jax.inference.predictor",
    "load_checkpoint": "fnet_jax.weights",
    "read_image": "fnet_jax.inference.image_files",
}

__all__ = [
    "FactorizableNet",
    "SceneGraph",
    "SceneGraphPredictor",
    "load_checkpoint",
    "read_image",
]


def __getattr__(name: str):
    # Imported on first use: a mistyped flag of the program is answered before JAX is loaded.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
