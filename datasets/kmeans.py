"""Anchors of a dataset: clusters of the sizes of its annotated objects."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from fnet_jax import image_ops
from fnet_jax.anchors import REFERENCE_SCALE, base_anchors
from fnet_jax.datasets.split import Split
from fnet_jax.errors import UserError
from fnet_jax.files import partial_of, writing

FILE = "kmeans_anchors.json"
_ROUNDS = 300
_CHUNK = 65536  # Boxes compared at once.


class Anchors(NamedTuple):
    """Scales and ratios in F-Net's form, ordered by area, for images with short side 600."""

    scales: list[float]
    ratios: list[float]
    mean_best_iou: float


def box_sizes(split: Split, max_size: float) -> np.ndarray:
    """(n, 2) float64 widths and heights of all annotated boxes, images enlarged to side 600.

    Args:
      split: whose boxes.
      max_size: longest side of an image whose short side is 600.
    """
    sizes = []
    for index in range(len(split)):
        record = split.record(index)
        shape = np.array((record["height"], record["width"]))
        factor = float(image_ops.resize_factor(shape, REFERENCE_SCALE, max_size))
        boxes = record["boxes"]
        sizes.append(_sides(boxes) * factor)
    return np.concatenate(sizes)


def cluster(sizes: np.ndarray, count: int, seed: int = 0) -> Anchors:
    """k-means with the distance 1 - IoU of boxes around one centre (Redmon and Farhadi, 2017).

    Args:
      sizes: (n, 2) widths and heights in pixels.
      count: number of anchors.
      seed: of the random choice of the first centres (k-means++).

    Raises:
      UserError: there are fewer different sizes than anchors.
    """
    sizes = np.round(np.asarray(sizes, np.float64), 6)  # Equal boxes of rescaled images are equal.
    distinct = len(np.unique(sizes, axis=0))
    if distinct < count:
        raise UserError(
            f"{count} anchors need as many different box sizes, but there are {distinct}; "
            "set fewer in config.anchors.scales and config.anchors.ratios"
        )
    centres = _first_centres(sizes, count, np.random.default_rng(seed))
    nearest = None
    for _ in range(_ROUNDS):
        previous, (nearest, _) = nearest, _nearest(sizes, centres)
        if previous is not None and (previous == nearest).all():
            break
        for index in range(count):
            members = sizes[nearest == index]
            if len(members):  # An empty cluster stays where it is.
                centres[index] = np.median(members, axis=0)
    centres = centres[np.argsort(centres.prod(axis=1), kind="stable")]
    ratios = np.maximum(np.round(centres[:, 1] / centres[:, 0], 3), 0.001)
    units = _sides(base_anchors(np.ones(count), ratios))
    scales = np.maximum(np.round(np.sqrt(centres.prod(axis=1) / units.prod(axis=1)), 3), 0.001)
    # Sides are rounded before they are scaled, so that anchors are not quite their centres.
    _, overlap = _nearest(sizes, _sides(base_anchors(scales, ratios)))
    return Anchors(scales.tolist(), ratios.tolist(), float(overlap.mean()))


def file_of(builder: tfds.core.DatasetBuilder) -> pathlib.Path:
    """Where the anchors of a built dataset lie, or would lie."""
    return pathlib.Path(builder.data_dir) / FILE


def write(path: str | os.PathLike, anchors: Anchors) -> None:
    """Writes `kmeans_anchors.json`; never seen half written. UserError if it cannot be."""
    path = pathlib.Path(path)
    content = {
        "anchor_scales_kmeans": anchors.scales,
        "anchor_ratios_kmeans": anchors.ratios,
        "mean_best_iou": round(anchors.mean_best_iou, 4),
    }
    partial = partial_of(path)
    with writing(path):
        partial.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(partial, path)


def _sides(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) inclusive boxes -> (n, 2) float64 widths and heights."""
    return boxes[:, 2:].astype(np.float64) - boxes[:, :2] + 1.0


def _first_centres(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++: each further centre is drawn by its squared distance to the nearest one."""
    centres = [sizes[rng.integers(len(sizes))]]
    distance = np.full(len(sizes), np.inf)
    while len(centres) < count:
        _, overlap = _nearest(sizes, np.array(centres[-1:]))
        distance = np.minimum(distance, (1.0 - overlap) ** 2)
        centres.append(sizes[rng.choice(len(sizes), p=distance / distance.sum())])
    return np.array(centres)


def _nearest(sizes: np.ndarray, centres: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Index of and IoU with the centre that each size overlaps most; (n,) each."""
    index, best = [], []
    for start in range(0, len(sizes), _CHUNK):
        part = sizes[start : start + _CHUNK, None]
        common = np.minimum(part, centres).prod(axis=2)
        overlap = common / (part.prod(axis=2) + np.prod(centres, axis=1) - common)
        index.append(overlap.argmax(axis=1))
        best.append(overlap.max(axis=1))
    return np.concatenate(index), np.concatenate(best)
