"""Reads VRD annotations in their two JSON forms: officially released, and converted for F-Net."""

import json
import pathlib

from fnet_jax.datasets.schema import Annotation
from fnet_jax.errors import UserError


def load_json(path: pathlib.Path):
    """The content of a JSON file; UserError with its name if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch or write it again") from error


def parse_official(content: dict) -> list[Annotation]:
    """{file name: [{predicate, subject: {category, bbox}, object: {category, bbox}}]}.

    Categories and predicates count from 0 there, bbox is [ymin, ymax, xmin, xmax]. Objects have no
    identity: the same category and box is the same object. They are numbered as first mentioned,
    the subject before the object. A file name with an empty list is an image without objects.
    """
    if not isinstance(content, dict):
        raise UserError("VRD annotations must be an object {file name: [relationships]}")
    return [_official_image(filename, entries) for filename, entries in content.items()]


def _official_image(filename: str, entries: list) -> Annotation:
    objects: dict[tuple, int] = {}
    relationships = []
    try:
        for entry in entries:
            pair = []
            for role in ("subject", "object"):
                y1, y2, x1, x2 = entry[role]["bbox"]
                key = (int(entry[role]["category"]) + 1, (x1, y1, x2, y2))
                pair.append(objects.setdefault(key, len(objects)))
            relationships.append((*pair, int(entry["predicate"]) + 1))
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(filename, error) from error
    return Annotation(
        filename, [box for _, box in objects], [label for label, _ in objects], relationships
    )


def parse_converted(content: list) -> list[Annotation]:
    """[{path, objects: [{bbox, class}], relationships: [{sub_id, obj_id, predicate}]}].

    Classes and predicates count from 1 there, bbox is [x1, y1, x2, y2].
    """
    if not isinstance(content, list):
        raise UserError("converted VRD annotations must be a list of images")
    return [_converted_image(index, entry) for index, entry in enumerate(content)]


def _converted_image(index: int, entry: dict) -> Annotation:
    filename = f"number {index}"
    try:
        filename = str(entry["path"])
        return Annotation(
            filename,
            [tuple(item["bbox"]) for item in entry["objects"]],
            [int(item["class"]) for item in entry["objects"]],
            [
                (int(item["sub_id"]), int(item["obj_id"]), int(item["predicate"]))
                for item in entry["relationships"]
            ],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(filename, error) from error


def _malformed(filename: str, error: Exception) -> UserError:
    return UserError(
        f"annotation of image {filename!r} is not in VRD's format "
        f"({type(error).__name__}: {error}); correct the file"
    )
