"""How well objects are found: recall of the proposals, average precision of the detections."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fnet_jax.metrics.arithmetic import EMPTY, overlaps, ratio


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
            f"rpn_recall@{self.top_n}": ratio(self.found, self.annotated),
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
