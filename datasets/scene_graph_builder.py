"""The TFDS builder base that writes the records of `fnet_jax.datasets.schema`."""

import abc
import collections
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from fnet_jax.datasets.schema import (
    Annotation,
    Scene,
    Skipped,
    Vocabulary,
    check,
    features,
    inverse_weights,
    to_record,
)
from fnet_jax.errors import UserError


class SceneGraphBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the shared record layout; a dataset supplies its vocabulary, splits and scenes.

    `source` is the manual directory of TFDS, None for a dataset that needs no files.
    """

    VERSION = tfds.core.Version("2.0.0")  # Of the layout; to be raised with every change.
    SPLITS: tuple[str, ...] = ("train", "test")
    strict = False  # Whether a photo that cannot be stored ends the build.
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
        fingerprint = self.fingerprint(source)  # Complains about missing files.
        vocabulary = self.vocabulary(source)
        self.info.metadata.update(
            object_classes=list(vocabulary.object_classes),
            predicates=list(vocabulary.predicates),
            object_weights=vocabulary.object_weights,
            predicate_weights=vocabulary.predicate_weights,
            max_objects=0,
            filenames={split: [] for split in self.SPLITS},
            image_sizes={split: [] for split in self.SPLITS},
            # Photos of another size than the source states; the photo is right.
            wrong_sizes={split: [] for split in self.SPLITS},
            skipped={split: [] for split in self.SPLITS},
            fingerprint=fingerprint,
        )
        return {split: self._generate_examples(source, split, vocabulary) for split in self.SPLITS}

    def _generate_examples(self, source, split, vocabulary):
        metadata = self.info.metadata
        statistics = _Statistics(vocabulary)
        names, sizes = metadata["filenames"][split], metadata["image_sizes"][split]
        for scene in self.scenes(source, split):
            if isinstance(scene, Skipped):
                if self.strict:
                    raise UserError(
                        f"--strict: {split} photo {scene.annotation.filename} cannot be stored: "
                        f"{scene.reason}"
                    )
                metadata["skipped"][split].append([scene.annotation.filename, scene.reason])
                continue
            annotation, size = scene.annotation, (scene.height, scene.width)
            check(annotation, vocabulary)
            statistics.add(annotation)
            metadata["max_objects"] = max(metadata["max_objects"], len(annotation.boxes))
            if annotation.stated_size not in (None, size):
                metadata["wrong_sizes"][split].append(annotation.filename)
            names.append(annotation.filename)
            sizes.append(list(size))
            yield len(sizes) - 1, to_record(scene)
        if not sizes:
            skipped = metadata["skipped"][split]
            if not skipped:
                raise UserError(
                    f"dataset {self.name}, split {split}: no image is annotated in {source}"
                )
            why = f"; the first, {skipped[0][0]!r}: {skipped[0][1]}"
            raise UserError(
                f"dataset {self.name}, split {split}: "
                f"none of the {len(skipped)} annotated photos can be read{why}"
            )
        repeated = [name for name, count in collections.Counter(names).items() if count > 1]
        if repeated:
            raise UserError(
                f"dataset {self.name}, split {split}: image {repeated[0]!r} is listed more than "
                "once, so that a result could not name it; keep one entry"
            )
        if split == "train":
            statistics.write(metadata)


class _Statistics:
    """What later work needs to know of the training annotations without reading them again."""

    def __init__(self, vocabulary: Vocabulary):
        self._objects = np.zeros(len(vocabulary.object_classes), np.int64)
        self._predicates = np.zeros(len(vocabulary.predicates), np.int64)
        self._triplets: set[tuple[int, int, int]] = set()

    def add(self, annotation: Annotation) -> None:
        labels = annotation.labels
        np.add.at(self._objects, list(labels), 1)
        for subject, object_, predicate in annotation.relationships:
            self._predicates[predicate] += 1
            self._triplets.add((int(labels[subject]), int(predicate), int(labels[object_])))

    def write(self, metadata) -> None:
        metadata["predicate_counts"] = self._predicates.tolist()
        metadata["triplets"] = sorted(map(list, self._triplets))
        if metadata["object_weights"] is None:
            metadata["object_weights"] = inverse_weights(self._objects)
        if metadata["predicate_weights"] is None:
            metadata["predicate_weights"] = inverse_weights(self._predicates)
