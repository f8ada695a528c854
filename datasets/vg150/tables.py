"""Reads the tables of VG150: `VG-SGG.h5`, its dictionaries, and the list of images."""

import pathlib

import numpy as np

from fnet_jax.datasets.json_files import fields, load_json
from fnet_jax.datasets.schema import Annotation
from fnet_jax.errors import UserError
from fnet_jax.hdf5 import open_arrays

# Boxes are stored for images whose longer side is this many pixels.
BOX_SCALE = 1024
# Listed in image_data.json without a row in the tables.
CORRUPT_IMAGES = (1592, 1722, 4616, 4617)
VALIDATION_IMAGES = 5000

_TRAIN, _TEST = 0, 2
_MAX_NUMBERS = 40_000_000  # of a table; Visual Genome has about 4 million in its largest
_COLUMNS = {
    "split": 1,
    "img_to_first_box": 1,
    "img_to_last_box": 1,
    "img_to_first_rel": 1,
    "img_to_last_rel": 1,
    "labels": 2,
    "boxes_1024": 2,
    "relationships": 2,
    "predicates": 2,
}


def decode_boxes(boxes: np.ndarray) -> np.ndarray:
    """(cx, cy, w, h) -> (x1, y1, x2, y2), both (n, 4) of whole numbers.

    The corner is truncated towards 0, and the size is added to it.
    """
    boxes = np.asarray(boxes, np.int64).reshape(-1, 4)
    corner = np.trunc(boxes[:, :2] - boxes[:, 2:] / 2).astype(np.int64)
    return np.concatenate([corner, corner + boxes[:, 2:]], axis=1)


def to_pixels(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes of the 1024 scale in pixels of the image, clipped to it; (n, 4) float64."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * (max(height, width) / BOX_SCALE)
    return np.clip(boxes, 0, [width - 1, height - 1, width - 1, height - 1])


def read_names(path: pathlib.Path, key: str) -> list[str]:
    """Class names of `VG-SGG-dicts.json` by their number, from 1; entry 0 stands for background."""
    content = load_json(path)
    numbers = content.get(key) if isinstance(content, dict) else None
    if not isinstance(numbers, dict) or sorted(numbers.values(), key=str) != sorted(
        range(1, len(numbers) + 1), key=str
    ):
        raise UserError(f"{path}: {key!r} must give each name its number, from 1 without gaps")
    return sorted(numbers, key=numbers.get)


def read_images(path: pathlib.Path) -> list[tuple[int, int, int]]:
    """(image id, height, width) of `image_data.json` in the order of the rows of the tables."""
    content = load_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path} must be a list of images")
    images = []
    for index, entry in enumerate(content):
        try:
            number, height, width = fields(entry, image_id=int, height=int, width=int)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: image {index} needs whole numbers image_id, height and width ({error})"
            ) from error
        if number not in CORRUPT_IMAGES:
            images.append((number, height, width))
    return images


class Tables:
    """The columns of `VG-SGG.h5`, checked: boxes at the 1024 scale, relationships by box."""

    def __init__(self, path: pathlib.Path, image_count: int):
        """Raises UserError if the file is not what it should be."""
        self._path = path
        with open_arrays(path, _COLUMNS, _MAX_NUMBERS) as arrays:
            for name, dimensions in _COLUMNS.items():
                if name not in arrays:
                    self._refuse(f"has no table {name!r}")
                if arrays[name].ndim != dimensions or arrays[name].dtype.kind not in "iu":
                    self._refuse(
                        f"has a table {name!r} that is not whole numbers in {dimensions}-d"
                    )
                if dimensions == 1 and arrays[name].shape != (image_count,):
                    self._refuse(
                        f"has {arrays[name].shape[0]} images in {name!r}, but image_data.json has "
                        f"{image_count} that count"
                    )
            columns = {name: np.asarray(arrays[name], np.int64) for name in _COLUMNS}
        self.split, self._boxes = columns["split"], columns["boxes_1024"]
        self._labels = columns["labels"].reshape(-1)
        self._pairs, self._predicates = columns["relationships"], columns["predicates"].reshape(-1)
        self._box_range = columns["img_to_first_box"], columns["img_to_last_box"]
        self._relation_range = columns["img_to_first_rel"], columns["img_to_last_rel"]
        if self._boxes.shape != (len(self._labels), 4):
            self._refuse("has not as many rows of four in 'boxes_1024' as in 'labels'")
        if self._pairs.shape != (len(self._predicates), 2):
            self._refuse("has not as many rows of two in 'relationships' as in 'predicates'")
        for (first, last), count in (
            (self._box_range, len(self._labels)),
            (self._relation_range, len(self._predicates)),
        ):
            if ((first >= 0) & ((last < first) | (last >= count))).any():
                self._refuse("refers to rows that do not exist")

    def rows(self, split: str) -> np.ndarray:
        """The images of a split that have boxes and relationships: rows, ascending."""
        related = (self._box_range[0] >= 0) & (self._relation_range[0] >= 0)
        if split == "test":
            return np.flatnonzero(related & (self.split == _TEST))
        rows = np.flatnonzero(related & (self.split == _TRAIN))
        return rows[:VALIDATION_IMAGES] if split == "validation" else rows[VALIDATION_IMAGES:]

    def annotation(self, row: int, filename: str, stated_size: tuple[int, int]) -> Annotation:
        """The objects and relationships of a row, boxes at the 1024 scale still."""
        first = int(self._box_range[0][row])
        objects = slice(first, int(self._box_range[1][row]) + 1)
        relations = slice(int(self._relation_range[0][row]), int(self._relation_range[1][row]) + 1)
        pairs = self._pairs[relations] - first
        return Annotation(
            filename,
            decode_boxes(self._boxes[objects]).tolist(),
            self._labels[objects].tolist(),
            [
                (*pair, predicate)
                for pair, predicate in zip(
                    pairs.tolist(), self._predicates[relations].tolist(), strict=True
                )
            ],
            stated_size=stated_size,
        )

    def _refuse(self, what: str) -> None:
        raise UserError(f"{self._path} {what}; fetch it again")
