"""The `vg150` builder: boxes are scaled to the photo as it is decoded, not as it is listed."""

import dataclasses
import pathlib
from collections.abc import Iterator

from fnet_jax.datasets.file_builder import FileBuilder
from fnet_jax.datasets.schema import BACKGROUND, Annotation, Scene, Skipped, Vocabulary
from fnet_jax.datasets.vg150 import tables

# With attributes or without: the tables that are read here are the same.
_TABLES = ("VG-SGG.h5", "VG-SGG-with-attri.h5")
_DICTS = ("VG-SGG-dicts.json", "VG-SGG-dicts-with-attri.json")


class Vg150(FileBuilder):
    """Visual Genome with 150 object classes and 50 predicates (Xu et al., CVPR 2017)."""

    name = "vg150"
    SPLITS = ("train", "validation", "test")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Expected there: VG-SGG.h5 and VG-SGG-dicts.json (or VG-SGG-with-attri.h5 and
        VG-SGG-dicts-with-attri.json), image_data.json, and the photos <image id>.jpg in VG_100K/,
        or divided among VG_100K/ and VG_100K_2/.
    """

    def files(self, source: pathlib.Path) -> list[pathlib.Path]:
        return [_first(source, _TABLES), _first(source, _DICTS), source / "image_data.json"]

    def photo_folders(self, source: pathlib.Path, split: str) -> list[pathlib.Path]:
        return [source / "VG_100K", source / "VG_100K_2"]

    def vocabulary(self, source: pathlib.Path) -> Vocabulary:
        path = _first(source, _DICTS)
        return Vocabulary(
            [BACKGROUND, *tables.read_names(path, "label_to_idx")],
            [BACKGROUND, *tables.read_names(path, "predicate_to_idx")],
        )

    def annotations(self, source: pathlib.Path, split: str) -> Iterator[Annotation]:
        """Boxes are at the 1024 scale; `scenes` turns them into pixels."""
        images = tables.read_images(source / "image_data.json")
        columns = tables.Tables(_first(source, _TABLES), len(images))
        for row in columns.rows(split).tolist():
            number, height, width = images[row]
            yield columns.annotation(row, f"{number}.jpg", (height, width))

    def scenes(self, source: pathlib.Path, split: str) -> Iterator[Scene | Skipped]:
        for scene in super().scenes(source, split):
            if isinstance(scene, Scene):
                boxes = tables.to_pixels(scene.annotation.boxes, scene.height, scene.width)
                annotation = dataclasses.replace(scene.annotation, boxes=boxes.tolist())
                scene = dataclasses.replace(scene, annotation=annotation)
            yield scene


def _first(source: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path:
    """The first of the files that is there; the first of all if none is."""
    return next((source / name for name in names if (source / name).is_file()), source / names[0])
