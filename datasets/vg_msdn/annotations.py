"""Reads the image lists of VG-MSDN, where classes stand by name."""

from fnet_jax.datasets.json_files import fields, four_numbers, malformed
from fnet_jax.datasets.schema import Annotation, Vocabulary
from fnet_jax.errors import UserError


def parse(content: object, vocabulary: Vocabulary) -> list[Annotation]:
    """[{path, objects: [{box, class}], relationships: [{sub_id, obj_id, predicate}], regions}].

    A box is [x1, y1, x2, y2]; a region, of which an image may have none, is {box, phrase: [words]}.
    """
    if not isinstance(content, list):
        raise UserError("VG-MSDN annotations must be a list of images")
    objects = {name: index for index, name in enumerate(vocabulary.object_classes) if index}
    predicates = {name: index for index, name in enumerate(vocabulary.predicates) if index}
    return [_image(index, entry, objects, predicates) for index, entry in enumerate(content)]


def _image(index: int, entry: object, classes: dict, predicates: dict) -> Annotation:
    filename = f"number {index}"
    try:
        (filename,) = fields(entry, path=str)
        objects, relationships = fields(entry, objects=list, relationships=list)
        items = [fields(item, box=list, **{"class": str}) for item in objects]
        triples = [fields(item, sub_id=int, obj_id=int, predicate=str) for item in relationships]
        regions = [fields(item, box=list, phrase=list) for item in entry.get("regions", [])]
        return Annotation(
            filename,
            [four_numbers(box) for box, _ in items],
            [_known(classes, name, "class") for _, name in items],
            [(s, o, _known(predicates, name, "predicate")) for s, o, name in triples],
            regions=[(four_numbers(box), " ".join(words)) for box, words in regions],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(filename, "VG-MSDN's format", error) from error


def _known(numbers: dict[str, int], name: str, what: str) -> int:
    if name not in numbers:
        raise ValueError(f"{what} {name!r} is not in categories.json")
    return numbers[name]
