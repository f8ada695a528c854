"""Metrics over a split: small states that take one image at a time, merge, and compute at the end.

All boxes are `(x1, y1, x2, y2)` pixels of the original image, inclusive ("+1"). Everything here is
NumPy on the host: sizes vary from image to image, and float64 decides the borderline overlaps as
the original did.

Relationship recall follows F-Net's own protocol (`FNetRecall`), which differs from the field's
standard one; other protocols deserve classes of their own. A number without the name of its
protocol cannot be compared with others.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# A recall or precision of nothing at all (no annotation, no detection) is this, never NaN: the
# counts that `compute` reports beside it tell the two apart.
EMPTY = 0.0


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


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (N, M) float64 of inclusive boxes (N, 4) and (M, 4)."""
    a = np.asarray(a, np.float64).reshape(-1, 1, 4)
    b = np.asarray(b, np.float64).reshape(1, -1, 4)

    def area(low, high):
        return np.prod(np.maximum(high - low + 1.0, 0.0), axis=-1)

    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    intersection = area(low, high)
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - intersection
    # Inverted boxes have no area; two of them overlap by nothing.
    return intersection / np.where(union > 0.0, union, 1.0)


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
                _union(gt_boxes[subjects], gt_boxes[objects]),
                _union(first.subject_boxes, first.object_boxes),
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
            f"{kind}_recall@{n}": _ratio(found, self.annotated)
            for kind in self.kinds
            for n, found in zip(self.top_ns, self.hits[kind].tolist(), strict=True)
        }
        return {**recalls, "annotated_relationships": self.annotated}

    def _found(self, matches: np.ndarray) -> np.ndarray:
        """(annotations, triplets) bool -> annotations matched by the first N, for each N."""
        return np.array([matches[:, :n].any(axis=1).sum() for n in self.top_ns], np.int64)


class ProposalRecall:
    """Share of annotated objects that some of the first N proposals overlap by IoU >= 0.5."""

    def __init__(self, top_n: int = 50, iou_threshold: float = 0.5):
        self.top_n = top_n
        self.iou_threshold = iou_threshold
        self.annotated = 0
        self.found = 0

    def update(self, gt_boxes: np.ndarray, proposals: np.ndarray) -> None:
        """Adds an image: (g, 4) annotated and (m, 4) ranked proposed boxes."""
        matches = overlaps(gt_boxes, proposals[: self.top_n]) >= self.iou_threshold
        self.annotated += len(matches)
        self.found += int(matches.any(axis=1).sum())

    def merge(self, other: "ProposalRecall") -> None:
        """Adds the images of another state with the same N and threshold."""
        if (self.top_n, self.iou_threshold) != (other.top_n, other.iou_threshold):
            raise ValueError("only states with equal N and threshold can be merged")
        self.annotated += other.annotated
        self.found += other.found

    def compute(self) -> dict[str, float]:
        """`rpn_recall@{N}` in [0, 1] and `annotated_objects`."""
        return {
            f"rpn_recall@{self.top_n}": _ratio(self.found, self.annotated),
            "annotated_objects": self.annotated,
        }


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """The curve of one class along descending score, and the area under it."""

    recall: np.ndarray  # (n,) float64
    precision: np.ndarray  # (n,) float64

    def area(self) -> float:
        """Average precision: area under the curve, precision made monotonous (VOC from 2010)."""
        recall = np.concatenate([[0.0], self.recall])
        best_from_here = np.maximum.accumulate(self.precision[::-1])[::-1]
        return float(np.sum(np.diff(recall) * best_from_here))

    def eleven_points(self) -> float:
        """Average precision of VOC 2007: mean best precision at recalls >= 0, 0.1, ... 1."""
        best = [
            self.precision[self.recall >= level].max(initial=0.0)
            for level in np.arange(0.0, 1.1, 0.1)
        ]
        return float(np.mean(best))


# What became of a detection.
_FALSE, _TRUE, _IGNORED = 0, 1, -1


class DetectionAP:
    """VOC average precision of object detection, per class and its mean (mAP), at IoU > 0.5.

    Detections of a class claim, in the order of their scores (ties: as given), the annotated
    object of that class which they overlap most. The first to claim it is right, later ones are
    wrong; claims on objects marked difficult do not count either way. Claims never cross images,
    so each image is settled when it is added and only scores and outcomes are kept: 7 bytes a
    detection.
    """

    def __init__(self, num_classes: int, iou_threshold: float = 0.5):
        """`num_classes` includes the background, class 0."""
        self.num_classes = num_classes
        self.iou_threshold = iou_threshold
        self.annotated = np.zeros(num_classes, np.int64)
        self._scores: list[np.ndarray] = []
        self._classes: list[np.ndarray] = []
        self._outcomes: list[np.ndarray] = []

    def update(
        self,
        gt_boxes: np.ndarray,
        gt_classes: np.ndarray,
        boxes: np.ndarray,
        scores: np.ndarray,
        classes: np.ndarray,
        difficult: np.ndarray | None = None,
    ) -> None:
        """Adds an image: (g, 4), (g,) annotated; (n, 4), (n,), (n,) detected; (g,) bool."""
        gt_boxes, gt_classes = np.asarray(gt_boxes).reshape(-1, 4), np.asarray(gt_classes, int)
        scores, classes = np.asarray(scores, np.float32), np.asarray(classes, np.int16)
        difficult = np.zeros(len(gt_boxes), bool) if difficult is None else np.asarray(difficult)
        outcomes = np.full(len(scores), _FALSE, np.int8)
        for label in np.unique(gt_classes):
            annotated = np.flatnonzero(gt_classes == label)
            detected = np.flatnonzero(classes == label)
            detected = detected[np.argsort(-scores[detected], kind="stable")]
            if not len(detected):
                continue
            iou = overlaps(boxes[detected], gt_boxes[annotated])
            claimed = annotated[iou.argmax(axis=1)]
            claims = np.flatnonzero(iou.max(axis=1) > self.iou_threshold)
            _, first = np.unique(claimed[claims], return_index=True)
            outcomes[detected[claims[first]]] = _TRUE
            outcomes[detected[claims[difficult[claimed[claims]]]]] = _IGNORED
        self.annotated += np.bincount(gt_classes[~difficult], minlength=self.num_classes)
        self._scores.append(scores)
        self._classes.append(classes)
        self._outcomes.append(outcomes)

    def merge(self, other: "DetectionAP") -> None:
        """Adds the images of another state with the same classes and threshold."""
        if (self.num_classes, self.iou_threshold) != (other.num_classes, other.iou_threshold):
            raise ValueError("only states with equal classes and threshold can be merged")
        self.annotated += other.annotated
        self._scores += other._scores
        self._classes += other._classes
        self._outcomes += other._outcomes

    def curve(self, label: int) -> PrecisionRecall:
        """The curve of one class; recall is 0 throughout if the class is not annotated."""
        return self._curves([label])[label]

    def compute(self) -> dict[str, float]:
        """`mAP`, the mean area over the annotated classes, and `annotated_classes`, their number.

        A class without annotation (difficult ones aside) has no precision and is left out.
        """
        labels = np.flatnonzero(self.annotated)
        areas = [curve.area() for curve in self._curves(labels).values()]
        return {"mAP": float(np.mean(areas)) if areas else EMPTY, "annotated_classes": len(areas)}

    def _curves(self, labels: Sequence[int]) -> dict[int, PrecisionRecall]:
        scores = np.concatenate([np.zeros(0, np.float32), *self._scores])
        classes = np.concatenate([np.zeros(0, np.int16), *self._classes])
        outcomes = np.concatenate([np.zeros(0, np.int8), *self._outcomes])
        # One sort for all classes: by class, then by descending score.
        order = np.lexsort((-scores, classes))
        classes, outcomes = classes[order], outcomes[order]
        starts, ends = (np.searchsorted(classes, labels, side) for side in ("left", "right"))
        return {
            int(label): _curve(outcomes[start:end], int(self.annotated[label]))
            for label, start, end in zip(labels, starts, ends, strict=True)
        }


def _curve(outcomes: np.ndarray, annotated: int) -> PrecisionRecall:
    right = np.cumsum(outcomes == _TRUE)
    wrong = np.cumsum(outcomes == _FALSE)
    return PrecisionRecall(
        recall=right / max(annotated, 1), precision=right / np.maximum(right + wrong, 1)
    )


def _union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.asarray(a).reshape(-1, 4), np.asarray(b).reshape(-1, 4)
    return np.concatenate([np.minimum(a[:, :2], b[:, :2]), np.maximum(a[:, 2:], b[:, 2:])], axis=1)


def _ratio(found: int, total: int) -> float:
    return found / total if total else EMPTY
