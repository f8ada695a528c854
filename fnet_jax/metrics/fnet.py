"""Recall of relationships by F-Net's own protocol."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fnet_jax.metrics.arithmetic import overlaps, ratio, unions


class Triplets(NamedTuple):
    """Ranked triplets of one image, the most certain first; T of them."""

    subject_classes: np.ndarray  # (T,) int
    predicates: np.ndarray  # (T,) int
    object_classes: np.ndarray  # (T,) int
    subject_boxes: np.ndarray  # (T, 4) float
    object_boxes: np.ndarray  # (T, 4) float


class ImageHits(NamedTuple):
    """What one image added to an `FNetRecall`; L cut-offs."""

    annotated: int
    relationship: np.ndarray  # (L,) int, annotated relationships found among the first N
    predicate: np.ndarray  # (L,) int
    phrase: np.ndarray  # (L,) int


def last_annotations(relationships: np.ndarray) -> np.ndarray:
    """Of (m, 3) rows (subject, object, predicate), those that count: the last of each pair.

    Returns: (n, 3) int64, ordered by (subject, object). Rows without a predicate (0) are dropped,
    after they replaced what their pair had before.
    """
    rows = np.asarray(relationships, np.int64).reshape(-1, 3)
    _, last = np.unique(rows[::-1, :2], axis=0, return_index=True)
    kept = rows[::-1][last]
    return kept[kept[:, 2] > 0]


class FNetRecall:
    """Predicate, phrase and relationship recall@N as F-Net defines them.

    An annotated relationship is found if some triplet among the first N has
    - **relationship**: all three classes right, and both boxes overlap theirs by IoU >= 0.5;
    - **predicate**: the predicate right (whatever the object classes), and both boxes overlap;
    - **phrase**: all three classes right, and the union of the two boxes overlaps the annotated
      union.
    A triplet may find several annotations. There is one predicate per ordered pair: the last
    annotated one. Recall is a micro-average, found / annotated over all images. An image without
    annotation adds nothing; one without triplets adds its annotations and no hit.
    """

    protocol = "F-Net"
    kinds = ("predicate", "phrase", "relationship")

    def __init__(self, top_ns: Sequence[int] = (50, 100), iou_threshold: float = 0.5):
        self.top_ns = tuple(top_ns)
        self.iou_threshold = iou_threshold
        self.annotated = 0
        self.hits = {kind: np.zeros(len(self.top_ns), np.int64) for kind in self.kinds}

    def update(
        self,
        gt_boxes: np.ndarray,
        gt_classes: np.ndarray,
        relationships: np.ndarray,
        triplets: Triplets,
    ) -> ImageHits:
        """Adds an image.

        Args:
          gt_boxes: (g, 4).
          gt_classes: (g,) int.
          relationships: (m, 3) int rows (subject, object, predicate), in the order of annotation.
          triplets: ranked; only the first max(N) are looked at.

        Returns: the counts of this image.
        """
        annotated = last_annotations(relationships)
        subjects, objects, predicates = annotated.T
        gt_boxes = np.asarray(gt_boxes, np.float64).reshape(-1, 4)
        gt_classes = np.asarray(gt_classes)
        first = Triplets(*(field[: max(self.top_ns)] for field in triplets))

        # (annotations, triplets) each
        boxes_match = (overlaps(gt_boxes[subjects], first.subject_boxes) >= self.iou_threshold) & (
            overlaps(gt_boxes[objects], first.object_boxes) >= self.iou_threshold
        )
        unions_match = (
            overlaps(
                unions(gt_boxes[subjects], gt_boxes[objects]),
                unions(first.subject_boxes, first.object_boxes),
            )
            >= self.iou_threshold
        )
        predicate_right = predicates[:, None] == first.predicates
        all_right = (
            predicate_right
            & (gt_classes[subjects][:, None] == first.subject_classes)
            & (gt_classes[objects][:, None] == first.object_classes)
        )
        image = ImageHits(
            annotated=len(annotated),
            relationship=self._found(all_right & boxes_match),
            predicate=self._found(predicate_right & boxes_match),
            phrase=self._found(all_right & unions_match),
        )
        self.annotated += image.annotated
        for kind, total in self.hits.items():
            total += getattr(image, kind)
        return image

    def merge(self, other: "FNetRecall") -> None:
        """Adds the images of another state with the same cut-offs and threshold."""
        if (self.top_ns, self.iou_threshold) != (other.top_ns, other.iou_threshold):
            raise ValueError("only states with equal cut-offs and threshold can be merged")
        self.annotated += other.annotated
        for kind, total in self.hits.items():
            total += other.hits[kind]

    def compute(self) -> dict[str, float]:
        """`{kind}_recall@{N}` in [0, 1] for each kind and N, and `annotated_relationships`."""
        recalls = {
            f"{kind}_recall@{n}": ratio(found, self.annotated)
            for kind in self.kinds
            for n, found in zip(self.top_ns, self.hits[kind].tolist(), strict=True)
        }
        return {**recalls, "annotated_relationships": self.annotated}

    def _found(self, matches: np.ndarray) -> np.ndarray:
        """(annotations, triplets) bool -> annotations matched by the first N, for each N."""
        return np.array([matches[:, :n].any(axis=1).sum() for n in self.top_ns], np.int64)
