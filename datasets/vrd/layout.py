"""Finds VRD's files in a folder: the official release or F-Net's converted one."""

import dataclasses
import pathlib
from collections.abc import Callable

import cv2
import numpy as np

from fnet_jax.datasets.schema import BACKGROUND, Annotation, Scene, Skipped, Vocabulary
from fnet_jax.datasets.vrd import annotations
from fnet_jax.errors import UserError

EXPECTED = """
    Expected there, as officially released: json_dataset/{annotations_train,annotations_test,
    objects,predicates}.json and the photos in sg_dataset/sg_train_images/ and
    sg_dataset/sg_test_images/ (or all in sg_dataset/); or, as converted for F-Net:
    {train,test,objects,predicates}.json, optionally inverse_weight.json, and the photos in
    images/sg_train_images/ and images/sg_test_images/ (or all in images/).
"""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the files of one release lie, relative to the manual directory."""

    name: str
    annotations: str  # With {split} for the split's name, as in `photos`.
    objects: str
    predicates: str
    weights: str | None
    photos: tuple[str, ...]  # Folders in the order in which they are searched.
    parse: Callable[[object], list[Annotation]]

    def files(self, source: pathlib.Path) -> list[pathlib.Path]:
        """The files without which there is no dataset."""
        names = [self.annotations.format(split=split) for split in ("train", "test")]
        return [source / name for name in (*names, self.objects, self.predicates)]


LAYOUTS = (
    Layout(
        name="official",
        annotations="json_dataset/annotations_{split}.json",
        objects="json_dataset/objects.json",
        predicates="json_dataset/predicates.json",
        weights=None,
        photos=("sg_dataset/sg_{split}_images", "sg_dataset"),
        parse=annotations.parse_official,
    ),
    Layout(
        name="converted",
        annotations="{split}.json",
        objects="objects.json",
        predicates="predicates.json",
        weights="inverse_weight.json",
        photos=("images/sg_{split}_images", "images"),
        parse=annotations.parse_converted,
    ),
)


def find_layout(source: pathlib.Path) -> Layout:
    """The release that lies in `source`; UserError naming what is missing if none is complete."""
    for layout in LAYOUTS:
        files = layout.files(source)
        missing = [str(path) for path in files if not path.is_file()]
        if not any(path.is_file() for path in files[:2]):
            continue
        if missing:
            raise UserError(f"VRD ({layout.name} form) lacks {', '.join(missing)}; add it")
        for split in ("train", "test"):
            if not photo_folders(layout, source, split):
                raise UserError(
                    f"VRD ({layout.name} form) has no {split} photos: put them in "
                    f"{source / layout.photos[0].format(split=split)}"
                )
        return layout
    raise UserError(f"no VRD annotations in {source}. {' '.join(EXPECTED.split())}")


def photo_folders(layout: Layout, source: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The folders that exist and may hold the photos of a split, the likeliest first."""
    folders = [source / name.format(split=split) for name in layout.photos]
    return [folder for folder in folders if folder.is_dir()]


def read_vocabulary(layout: Layout, source: pathlib.Path) -> Vocabulary:
    """Class names with the background first, and class weights where the release has them."""
    objects = _names(source / layout.objects)
    predicates = _names(source / layout.predicates)
    if layout.weights is None or not (source / layout.weights).is_file():
        return Vocabulary(objects, predicates)
    path = source / layout.weights
    content = annotations.load_json(path)
    return Vocabulary(
        objects,
        predicates,
        _weights(path, content, "object", len(objects)),
        _weights(path, content, "predicate", len(predicates)),
    )


def _names(path: pathlib.Path) -> list[str]:
    names = annotations.load_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} must be a JSON list of class names")
    return [BACKGROUND, *names]


def _weights(path: pathlib.Path, content: object, key: str, count: int) -> list[float]:
    weights = content.get(key) if isinstance(content, dict) else None
    if not isinstance(weights, list) or len(weights) != count:
        raise UserError(f"{path}: {key!r} must be a list of {count} weights, background first")
    return [float(weight) for weight in weights]


class Photos:
    """The photos of a split, found by the name in the annotations or by its stem."""

    def __init__(self, folders: list[pathlib.Path]):
        self._folders = folders
        # Some photos were released under another ending than the annotations have.
        self._by_stem: dict[str, pathlib.Path] = {}
        for folder in reversed(folders):
            for path in sorted(folder.iterdir(), reverse=True):
                if path.is_file():
                    self._by_stem[path.stem] = path

    def load(self, annotation: Annotation) -> Scene | Skipped:
        """The photo of an annotation, or why there is none."""
        path = self._find(annotation.filename)
        if path is None:
            return Skipped(annotation.filename, f"not in {self._folders[0]}")
        encoded = path.read_bytes()
        # The content decides how a photo is decoded: endings lie.
        pixels = np.frombuffer(encoded, np.uint8)
        image = cv2.imdecode(pixels, cv2.IMREAD_COLOR) if len(pixels) else None
        if image is None:
            return Skipped(annotation.filename, f"{path} is no image that OpenCV can decode")
        return Scene(encoded, image.shape[0], image.shape[1], annotation)

    def _find(self, filename: str) -> pathlib.Path | None:
        for folder in self._folders:
            if (folder / filename).is_file():
                return folder / filename
        return self._by_stem.get(pathlib.PurePath(filename).stem)
