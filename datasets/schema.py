"""The one record layout of every scene graph dataset, and the TFDS builder base that writes it.

A record holds the encoded photo as it is on disk and all that is annotated, repeated relationships
too: which of them count is the reader's choice. What is known of the dataset as a whole (class
names, class weights, image sizes, the largest object count, skipped photos) is builder metadata,
so that reading a built dataset needs neither its source nor a pass over its pixels.
"""

import abc
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from fnet_jax.errors import UserError

BACKGROUND = "background"


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
    """

    filename: str
    boxes: Sequence[Sequence[float]]
    labels: Sequence[int]
    relationships: Sequence[tuple[int, int, int]]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image to be stored: its encoded bytes, decoded size in pixels, and annotation."""

    image: bytes
    height: int
    width: int
    annotation: Annotation


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A photo that cannot be stored, and why."""

    filename: str
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
        }
    )


def inverse_weights(counts: np.ndarray) -> list[float]:
    """Inverse class frequencies over their minimum, the background's (entry 0) being 1.

    A class that never occurs is treated as if it occurred once, so that its weight stays finite.
    """
    counts = np.maximum(np.asarray(counts, np.float64), 1.0)
    return [1.0, *(counts[1:].max() / counts[1:]).tolist()]


def check(annotation: Annotation, vocabulary: Vocabulary) -> None:
    """Raises UserError, naming the image, if an annotation contradicts itself or the classes."""

    def refuse(what: str) -> None:
        raise UserError(f"annotation of image {annotation.filename!r}: {what}; correct the file")

    if len(annotation.boxes) != len(annotation.labels):
        refuse(f"{len(annotation.boxes)} boxes but {len(annotation.labels)} labels")
    for index, (box, label) in enumerate(zip(annotation.boxes, annotation.labels, strict=True)):
        if len(box) != 4 or not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
            refuse(f"object {index} has the box {list(box)}, not x1 <= x2 and y1 <= y2")
        if not 0 < label < len(vocabulary.object_classes):
            refuse(
                f"object {index} has class {label}, "
                f"but the classes are 1 to {len(vocabulary.object_classes) - 1}"
            )
    known = range(len(annotation.boxes))
    for subject, object_, predicate in annotation.relationships:
        if subject not in known or object_ not in known:
            refuse(f"relationship ({subject}, {object_}) names an object that is not there")
        if not 0 < predicate < len(vocabulary.predicates):
            refuse(
                f"predicate {predicate} is unknown, "
                f"the predicates are 1 to {len(vocabulary.predicates) - 1}"
            )


class SceneGraphBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the shared record layout; a dataset supplies its vocabulary, splits and scenes.

    `source` is the manual directory of TFDS, None for a dataset that needs no files.
    """

    VERSION = tfds.core.Version("1.0.0")
    SPLITS: tuple[str, ...] = ("train", "test")
    # No file here has a URL; looking for their checksums makes TFDS 4.9.10 import a package that
    # it does not depend on (importlib_resources).
    url_infos = None

    @abc.abstractmethod
    def vocabulary(self, source: pathlib.Path | None) -> Vocabulary:
        """Class names and, if the source has them, class weights."""

    @abc.abstractmethod
    def scenes(self, source: pathlib.Path | None, split: str) -> Iterator[Scene | Skipped]:
        """The images of a split, in the order in which they are stored."""

    def fingerprint(self, source: pathlib.Path | None) -> str:
        """Identifies the source files, so that a build of others is not mistaken for theirs.

        Raises:
          UserError: `source` lacks files that the dataset is built from.
        """
        del source
        return ""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=features(),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        source = pathlib.Path(dl_manager.manual_dir) if self.MANUAL_DOWNLOAD_INSTRUCTIONS else None
        vocabulary = self.vocabulary(source)
        self.info.metadata.update(
            object_classes=list(vocabulary.object_classes),
            predicates=list(vocabulary.predicates),
            object_weights=vocabulary.object_weights,
            predicate_weights=vocabulary.predicate_weights,
            max_objects=0,
            image_sizes={split: [] for split in self.SPLITS},
            skipped={split: [] for split in self.SPLITS},
            fingerprint=self.fingerprint(source),
        )
        return {split: self._generate_examples(source, split, vocabulary) for split in self.SPLITS}

    def _generate_examples(self, source, split, vocabulary):
        metadata = self.info.metadata
        object_counts = np.zeros(len(vocabulary.object_classes), np.int64)
        predicate_counts = np.zeros(len(vocabulary.predicates), np.int64)
        sizes = metadata["image_sizes"][split]
        for scene in self.scenes(source, split):
            if isinstance(scene, Skipped):
                metadata["skipped"][split].append([scene.filename, scene.reason])
                continue
            annotation = scene.annotation
            check(annotation, vocabulary)
            np.add.at(object_counts, list(annotation.labels), 1)
            np.add.at(predicate_counts, [triple[2] for triple in annotation.relationships], 1)
            metadata["max_objects"] = max(metadata["max_objects"], len(annotation.boxes))
            sizes.append([scene.height, scene.width])
            yield len(sizes) - 1, to_record(scene)
        if not sizes:
            skipped = metadata["skipped"][split]
            why = f"; the first, {skipped[0][0]!r}: {skipped[0][1]}" if skipped else ""
            raise UserError(
                f"dataset {self.name}, split {split}: "
                f"none of the {len(skipped)} annotated photos can be read{why}"
            )
        if split == "train":
            if metadata["object_weights"] is None:
                metadata["object_weights"] = inverse_weights(object_counts)
            if metadata["predicate_weights"] is None:
                metadata["predicate_weights"] = inverse_weights(predicate_counts)


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
    }
