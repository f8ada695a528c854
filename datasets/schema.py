"""The one record layout of every scene graph dataset, and what may stand in it.

A record holds the encoded photo as it is on disk and all that is annotated, repeated relationships
too: which of them count is the reader's choice. What is known of the dataset as a whole (class
names, class weights, image sizes, the largest object count, skipped photos) is builder metadata,
so that reading a built dataset needs neither its source nor a pass over its pixels.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from fnet_jax.errors import UserError

BACKGROUND = "background"
# On one image: a batch has a matrix of them, squared. Real datasets stay below 300.
MAX_OBJECTS = 2000


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Class names, entry 0 being the background; weights are inverse frequencies, if given.

    Weights have one entry per class with the background's first; None means that the builder
    counts the training split.
    """

    object_classes: Sequence[str]
    predicates: Sequence[str]
    object_weights: Sequence[float] | None = None
    predicate_weights: Sequence[float] | None = None


@dataclasses.dataclass(frozen=True)
class Annotation:
    """What is annotated on one image: g objects, m relationships, in the order of the source.

    Attributes:
      filename: the name of the photo in the source.
      boxes: g boxes (x1, y1, x2, y2), inclusive pixels of the original image.
      labels: g object classes, from 1.
      relationships: m triples (subject index, object index, predicate from 1).
      regions: described boxes, ((x1, y1, x2, y2), phrase); most datasets have none.
      stated_size: (height, width) that the source claims, which may be wrong; None without claim.
    """

    filename: str
    boxes: Sequence[Sequence[float]]
    labels: Sequence[int]
    relationships: Sequence[tuple[int, int, int]]
    regions: Sequence[tuple[Sequence[float], str]] = ()
    stated_size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image to be stored: its encoded bytes, decoded size in pixels, and annotation."""

    image: bytes
    height: int
    width: int
    annotation: Annotation


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An annotated image whose photo cannot be stored, and why."""

    annotation: Annotation
    reason: str


def features() -> tfds.features.FeaturesDict:
    """The record: boxes are float32 (x1, y1, x2, y2) inclusive pixels of the original image."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(doc="encoded, as in the source"),
            "filename": tfds.features.Text(),
            "height": np.int32,
            "width": np.int32,
            "objects": tfds.features.Sequence(
                {"bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32), "label": np.int32}
            ),
            "relationships": tfds.features.Sequence(
                {"subject": np.int32, "object": np.int32, "predicate": np.int32}
            ),
            "regions": tfds.features.Sequence(
                {
                    "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                    "phrase": tfds.features.Text(),
                }
            ),
        }
    )


def inverse_weights(counts: np.ndarray) -> list[float]:
    """Inverse class frequencies over their minimum, the background's (entry 0) being 1.

    A class that never occurs is treated as if it occurred once, so that its weight stays finite.
    """
    counts = np.maximum(np.asarray(counts, np.float64), 1.0)
    return [1.0, *(counts[1:].max() / counts[1:]).tolist()]


class Fault(NamedTuple):
    """Something in an annotation that cannot be stored."""

    kind: str  # "count" | "box" | "class" | "relationship" | "predicate"
    what: str  # For people, e.g. "object 3 has class 151, but the classes are 1 to 150".


def faults(annotation: Annotation, vocabulary: Vocabulary) -> Iterator[Fault]:
    """Where an annotation contradicts itself or the classes."""
    objects, predicates = len(vocabulary.object_classes) - 1, len(vocabulary.predicates) - 1
    if len(annotation.boxes) > MAX_OBJECTS:
        yield Fault("count", f"{len(annotation.boxes)} objects are more than {MAX_OBJECTS}")
    regions = ((f"region {index}", box) for index, (box, _) in enumerate(annotation.regions))
    boxes = ((f"object {index}", box) for index, box in enumerate(annotation.boxes))
    for name, box in itertools.chain(boxes, regions):
        if len(box) != 4 or not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
            yield Fault("box", f"{name} has the box {list(box)}, not x1 <= x2 and y1 <= y2")
    for index, label in enumerate(annotation.labels):
        if not 0 < label <= objects:
            yield Fault(
                "class", f"object {index} has class {label}, but the classes are 1 to {objects}"
            )
    known = range(len(annotation.boxes))
    for subject, object_, predicate in annotation.relationships:
        if subject not in known or object_ not in known:
            yield Fault(
                "relationship",
                f"relationship ({subject}, {object_}) names an object that is not there",
            )
        if not 0 < predicate <= predicates:
            yield Fault(
                "predicate",
                f"predicate {predicate} is unknown, the predicates are 1 to {predicates}",
            )


def check(annotation: Annotation, vocabulary: Vocabulary) -> None:
    """Raises UserError, naming the image, for the first fault of an annotation."""
    for fault in faults(annotation, vocabulary):
        raise UserError(
            f"annotation of image {annotation.filename!r}: {fault.what}; correct the file"
        )


def to_record(scene: Scene) -> dict:
    """The dict that `features()` encodes."""
    annotation = scene.annotation
    return {
        "image": scene.image,
        "filename": annotation.filename,
        "height": scene.height,
        "width": scene.width,
        "objects": [
            {"bbox": np.asarray(box, np.float32), "label": label}
            for box, label in zip(annotation.boxes, annotation.labels, strict=True)
        ],
        "relationships": [
            {"subject": subject, "object": object_, "predicate": predicate}
            for subject, object_, predicate in annotation.relationships
        ],
        "regions": [
            {"bbox": np.asarray(box, np.float32), "phrase": phrase}
            for box, phrase in annotation.regions
        ],
    }
