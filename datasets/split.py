"""Random access to the images and annotations of a split of a built dataset."""

import numpy as np
import tensorflow_datasets as tfds

from fnet_jax import image_ops
from fnet_jax.errors import UserError, reason
from fnet_jax.metrics import TrainingStatistics


class Split:
    """One split of a built dataset, by index, in the order in which it was stored.

    Attributes:
      dataset, name: e.g. "vrd" and "test", or "test[:20]" for a part of it.
      object_classes, predicates: class names, the background first.
      object_weights, predicate_weights: inverse class frequencies (float64), the background's 1.
      max_objects: objects on the richest image of any split.
      padded_objects: the same, rounded up to a multiple of 8 (G of a batch).
      sizes: (len, 2) int64 original heights and widths.
      filenames: names of the photos.
      training: predicates and triplets of the training split, whichever split this is.
      skipped: (file name, reason) of the annotated photos that could not be stored.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, name: str):
        metadata = builder.info.metadata
        parts = _absolute(builder, name)
        self.dataset, self.name, self._folder = builder.name, name, str(builder.data_dir)
        self.object_classes = tuple(metadata["object_classes"])
        self.predicates = tuple(metadata["predicates"])
        self.object_weights = np.asarray(metadata["object_weights"], np.float64)
        self.predicate_weights = np.asarray(metadata["predicate_weights"], np.float64)
        self.max_objects = int(metadata["max_objects"])
        self.padded_objects = max(8, -(-self.max_objects // 8) * 8)
        self.sizes = np.concatenate(
            [np.asarray(metadata["image_sizes"][split])[part] for split, part in parts]
        ).reshape(-1, 2)
        self.filenames = [
            name for split, part in parts for name in metadata["filenames"][split][part]
        ]
        self.training = TrainingStatistics(
            metadata["predicate_counts"], [tuple(row) for row in metadata["triplets"]]
        )
        self.skipped = [tuple(entry) for split, _ in parts for entry in metadata["skipped"][split]]
        self._source = builder.as_data_source(name, decoders={"image": tfds.decode.SkipDecoding()})
        if not len(self.sizes):
            raise UserError(f"split {name!r} of dataset {builder.name} is empty; choose another")

    def __len__(self) -> int:
        return len(self.sizes)

    def record(self, index: int) -> dict:
        """The annotation of image `index`, without decoding its pixels.

        Returns:
          filename (str); height, width (int, original pixels); boxes (g, 4) float64, inclusive
          original pixels; classes (g,) int64 from 1; relationships (m, 3) int64 rows (subject,
          object, predicate from 1), all that are annotated, in the order of the source;
          region_boxes (r, 4) float64 and region_phrases (r of str), described parts of the image.
        """
        return self._annotation(self._read(index))

    def image(self, index: int, color_order: str = "bgr") -> np.ndarray:
        """Image `index` in its original size, (h, w, 3) uint8; UserError if it is damaged."""
        return self._decode(index, self._read(index), color_order)

    def load(self, index: int, color_order: str) -> tuple[dict, np.ndarray]:
        """Both of the above with one read."""
        raw = self._read(index)
        return self._annotation(raw), self._decode(index, raw, color_order)

    def _read(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        try:
            return self._source[int(index)]
        # What array_record raises for files that are damaged, cut off or gone.
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            raise UserError(
                f"dataset {self.dataset}, split {self.name}: image {index} cannot be read from "
                f"{self._folder} ({reason(error)}); put the built dataset back, or delete what "
                "is left of it to have it built again"
            ) from error

    def _annotation(self, raw: dict) -> dict:
        relationships = raw["relationships"]
        triples = [relationships[key] for key in ("subject", "object", "predicate")]
        return {
            "filename": raw["filename"].decode(),
            "height": int(raw["height"]),
            "width": int(raw["width"]),
            "boxes": np.asarray(raw["objects"]["bbox"], np.float64).reshape(-1, 4),
            "classes": np.asarray(raw["objects"]["label"], np.int64).reshape(-1),
            "relationships": np.asarray(triples, np.int64).reshape(3, -1).T,
            "region_boxes": np.asarray(raw["regions"]["bbox"], np.float64).reshape(-1, 4),
            "region_phrases": [phrase.decode() for phrase in raw["regions"]["phrase"]],
        }

    def _decode(self, index: int, raw: dict, color_order: str) -> np.ndarray:
        image = image_ops.decode(raw["image"], color_order)
        if image is None or image.shape[:2] != tuple(self.sizes[index]):
            raise UserError(
                f"dataset {self.dataset}, split {self.name}: image {index} "
                f"({raw['filename'].decode()}) is damaged; delete the built dataset to rebuild it"
            )
        return image


def _absolute(builder: tfds.core.DatasetBuilder, name: str) -> list[tuple[str, slice]]:
    """The stored splits, and the range of each, that a name such as "test[:20]" stands for."""
    try:
        infos = {split: builder.info.splits[split] for split in builder.info.splits}
        parts = tfds.core.ReadInstruction.from_spec(name).to_absolute(infos)
    except (ValueError, AssertionError) as error:
        known = ", ".join(sorted(builder.info.splits))
        raise UserError(f"dataset {builder.name} has no split {name!r}; it has {known}") from error
    return [(part.splitname, slice(part.from_, part.to)) for part in parts]
