"""The `psg` builder: panoptic scene graphs, of which the boxes are read."""

import dataclasses
import pathlib
from collections.abc import Iterator

from fnet_jax.datasets import json_files
from fnet_jax.datasets.file_builder import FileBuilder
from fnet_jax.datasets.json_files import fields, four_numbers
from fnet_jax.datasets.schema import Annotation, Vocabulary
from fnet_jax.errors import UserError


class Psg(FileBuilder):
    """Panoptic Scene Graphs (Yang et al., ECCV 2022): 133 object classes, 56 predicates."""

    name = "psg"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Expected there: psg.json, and the COCO photos in coco/, so that the file names in psg.json
        (train2017/000000000009.jpg) are paths from there.
    """

    def files(self, source: pathlib.Path) -> list[pathlib.Path]:
        return [source / "psg.json"]

    def photo_folders(self, source: pathlib.Path, split: str) -> list[pathlib.Path]:
        return [source / "coco", source]

    def vocabulary(self, source: pathlib.Path) -> Vocabulary:
        path = source / "psg.json"
        content = self._content(path)
        things, stuff, predicates = (
            content.get(key) for key in ("thing_classes", "stuff_classes", "predicate_classes")
        )
        if not isinstance(things, list) or not isinstance(stuff, list):
            raise UserError(f"{path}: thing_classes and stuff_classes must be lists of class names")
        return Vocabulary(
            json_files.class_names(path, [*things, *stuff], "thing_classes with stuff_classes"),
            json_files.class_names(path, predicates, "predicate_classes"),
        )

    def annotations(self, source: pathlib.Path, split: str) -> Iterator[Annotation]:
        """Images without relations are left out; in the test split so are repeated relations."""
        path = source / "psg.json"
        content = self._content(path)
        images, test_ids = content.get("data"), content.get("test_image_ids")
        if not isinstance(images, list) or not isinstance(test_ids, list):
            raise UserError(f"{path}: data and test_image_ids must be lists")
        held_out = set(map(str, test_ids))
        for index, entry in enumerate(images):
            name = f"number {index}"
            try:
                annotation = _image(entry)
                in_test = str(entry["image_id"]) in held_out
            except (KeyError, TypeError, ValueError) as error:
                if isinstance(entry, dict) and isinstance(entry.get("file_name"), str):
                    name = entry["file_name"]
                raise UserError(
                    f"{path}: {json_files.malformed(name, 'PSG format', error)}"
                ) from error
            if annotation.relationships and in_test == (split == "test"):
                if in_test:
                    unique = list(dict.fromkeys(annotation.relationships))
                    annotation = dataclasses.replace(annotation, relationships=unique)
                yield annotation

    def _content(self, path: pathlib.Path) -> dict:
        content = json_files.load_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path} must hold data, classes and test_image_ids")
        return content


def _image(entry: object) -> Annotation:
    filename, height, width, objects, relations = fields(
        entry, file_name=str, height=int, width=int, annotations=list, relations=list
    )
    items = [fields(item, bbox=list, category_id=int) for item in objects]
    for relation in relations:
        if not isinstance(relation, list) or [type(part) for part in relation] != [int] * 3:
            raise TypeError(f"{relation!r} is no [subject, object, predicate]"[:120])
    return Annotation(
        filename,
        [four_numbers(bbox) for bbox, _ in items],
        [category + 1 for _, category in items],
        [(subject, object_, predicate + 1) for subject, object_, predicate in relations],
        stated_size=(height, width),
    )
