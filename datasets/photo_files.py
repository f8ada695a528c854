"""Finds the photos of a source by their names and looks whether they can be read."""

import pathlib

import cv2
import numpy as np

from fnet_jax.datasets.schema import Annotation, Scene, Skipped


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
            return Skipped(annotation, f"not in {self._folders[0]}")
        encoded = path.read_bytes()
        # The content decides how a photo is decoded: endings lie.
        pixels = np.frombuffer(encoded, np.uint8)
        image = cv2.imdecode(pixels, cv2.IMREAD_COLOR) if len(pixels) else None
        if image is None:
            return Skipped(annotation, f"{path} is no image that OpenCV can decode")
        return Scene(encoded, image.shape[0], image.shape[1], annotation)

    def _find(self, filename: str) -> pathlib.Path | None:
        for folder in self._folders:
            if (folder / filename).is_file():
                return folder / filename
        return self._by_stem.get(pathlib.PurePath(filename).stem)
