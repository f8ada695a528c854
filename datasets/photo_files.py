"""Finds the photos of a source by their names and looks whether they can be read."""

import os
import pathlib

import cv2
import numpy as np

from fnet_jax.datasets.schema import Annotation, Scene, Skipped


class Photos:
    """The photos of a split, found by the name in the annotations or by its stem.

    Only files in the folders are found; names that lead out of them count by their stem alone.
    """

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
            return Skipped(annotation, f"not in {self._folders[0]}")
        try:
            encoded = path.read_bytes()
        except OSError as error:
            return Skipped(annotation, f"{path} cannot be read ({error.strerror})")
        # The content decides how a photo is decoded: endings lie.
        pixels = np.frombuffer(encoded, np.uint8)
        try:
            image = cv2.imdecode(pixels, cv2.IMREAD_COLOR)
        except cv2.error:  # E.g. no bytes at all, or more pixels than OpenCV allows.
            image = None
        if image is None:
            return Skipped(annotation, f"{path} is no image that OpenCV can decode")
        return Scene(encoded, image.shape[0], image.shape[1], annotation)

    def _find(self, filename: str) -> pathlib.Path | None:
        name = pathlib.PurePath(filename)
        # Annotations come from strangers: no name leads out of the folders.
        if not name.is_absolute() and ".." not in name.parts:
            for folder in self._folders:
                # Unlike pathlib's, this is False for names that no file can have.
                if os.path.isfile(folder / name):
                    return folder / name
        return self._by_stem.get(name.stem)
