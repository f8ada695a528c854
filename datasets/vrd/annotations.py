"""Reads VRD annotations in their two JSON forms: officially released, and converted for F-Net."""

from fnet_jax.datasets.json_files import fields, four_numbers, malformed
from fnet_jax.datasets.schema import Annotation
from fnet_jax.errors import UserError


def parse_official(content: object) -> list[Annotation]:
    """{file name: [{predicate, subject: {category, bbox}, object: {category, bbox}}]}.

    Categories and predicates count from 0 there, bbox is [ymin, ymax, xmin, xmax]. Objects have no
    identity: the same category and box is the same object. They are numbered as first mentioned,
    the subject before the object. A file name with an empty list is an image without objects.
    """
    if not isinstance(content, dict):
        raise UserError("VRD annotations must be an object {file name: [relationships]}")
    return [_official_image(filename, entries) for filename, entries in content.items()]


def _official_image(filename: str, entries: object) -> Annotation:
    objects: dict[tuple, int] = {}
    relationships = []
    try:
        if not isinstance(entries, list):
            raise TypeError(f"{entries!r} is not a list"[:120])
        for entry in entries:
            subject, object_, predicate = fields(entry, subject=dict, object=dict, predicate=int)
            pair = []
            for role in (subject, object_):
                category, bbox = fields(role, category=int, bbox=list)
                y1, y2, x1, x2 = four_numbers(bbox)
                key = (category + 1, (x1, y1, x2, y2))
                pair.append(objects.setdefault(key, len(objects)))
            relationships.append((*pair, predicate + 1))
    except (KeyError, TypeError) as error:
        raise malformed(filename, "VRD's format", error) from error
    return Annotation(
        filename, [box for _, box in objects], [label for label, _ in objects], relationships
    )


def parse_converted(content: object) -> list[Annotation]:
    """[{path, objects: [{bbox, class}], relationships: [{sub_id, obj_id, predicate}]}].

    Classes and predicates count from 1 there, bbox is [x1, y1, x2, y2].
    """
    if not isinstance(content, list):
        raise UserError("converted VRD annotations must be a list of images")
    return [_converted_image(index, entry) for index, entry in enumerate(content)]


def _converted_image(index: int, entry: object) -> Annotation:
    filename = f"number {index}"
    try:
        (filename,) = fields(entry, path=str)
        objects, relationships = fields(entry, objects=list, relationships=list)
        items = [fields(item, bbox=list, **{"class": int}) for item in objects]
        triples = [fields(item, sub_id=int, obj_id=int, predicate=int) for item in relationships]
        return Annotation(
            filename,
            [four_numbers(bbox) for bbox, _ in items],
            [label for _, label in items],
            [tuple(triple) for triple in triples],
        )
    except (KeyError, TypeError) as error:
        raise malformed(filename, "VRD's converted format", error) from error
