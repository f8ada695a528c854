"""How well objects are found: recall of the proposals, average precision of the detections."""

import array
import dataclasses

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
    so each image is settled when it is added and only scores and outcomes are kept: 5 bytes a
    detection, which is what memory grows by.
    """

    def __init__(self, num_classes: int, iou_threshold: float = 0.5):
        """`num_classes` includes the background, class 0."""
        self.num_classes = num_classes
        self.iou_threshold = iou_threshold
        self.annotated = np.zeros(num_classes, np.int64)
        # By class, in the order of the images; these grow in place.
        self._scores = [array.array("f") for _ in range(num_classes)]
        self._outcomes = [array.array("b") for _ in range(num_classes)]

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
        scores, classes = np.asarray(scores, np.float32), np.asarray(classes, int)
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
        for label in np.unique(classes):
            of_class = classes == label
            self._scores[label].frombytes(scores[of_class].tobytes())
            self._outcomes[label].frombytes(outcomes[of_class].tobytes())

    def merge(self, other: "DetectionAP") -> None:
        """Adds the images of another state with the same classes and threshold."""
        if (self.num_classes, self.iou_threshold) != (other.num_classes, other.iou_threshold):
            raise ValueError("only states with equal classes and threshold can be merged")
        self.annotated += other.annotated
        for label in range(self.num_classes):
            self._scores[label] += other._scores[label]
            self._outcomes[label] += other._outcomes[label]

    def curve(self, label: int) -> PrecisionRecall:
        """The curve of one class; recall is 0 throughout if the class is not annotated."""
        scores = np.frombuffer(self._scores[label], np.float32)
        outcomes = np.frombuffer(self._outcomes[label], np.int8)
        outcomes = outcomes[np.argsort(-scores, kind="stable")]
        right, wrong = np.cumsum(outcomes == _TRUE), np.cumsum(outcomes == _FALSE)
        return PrecisionRecall(
            recall=right / max(self.annotated[label], 1),
            precision=right / np.maximum(right + wrong, 1),
        )

    def compute(self) -> dict[str, float]:
        """`mAP`, the mean area over the annotated classes, and `annotated_classes`, their number.

        A class without annotation (difficult ones aside) has no precision and is left out.
        """
        areas = [self.curve(label).area() for label in np.flatnonzero(self.annotated)]
        return {"mAP": float(np.mean(areas)) if areas else EMPTY, "annotated_classes": len(areas)}
