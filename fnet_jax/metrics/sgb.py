"""Recall of relationships by the field's standard protocol (Scene-Graph-Benchmark)."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from fnet_jax.metrics.arithmetic import EMPTY, overlaps, ratio

# What is given besides the image: nothing, the annotated boxes, boxes and classes.
TASKS = ("sgdet", "sgcls", "predcls")
TERTILES = ("head", "body", "tail")


class RankedPairs(NamedTuple):
    """Two rankings of one image's T triplets over its n objects, each from the most certain."""

    boxes: np.ndarray  # (n, 4) float
    classes: np.ndarray  # (n,) int
    constrained: np.ndarray  # (T, 3) int rows (subject, object, predicate), one for a pair
    unconstrained: np.ndarray  # (U, 3) int rows, every predicate of every pair


def one_per_pair(triplets: np.ndarray) -> np.ndarray:
    """Of ranked (T, 3) rows (subject, object, predicate), the first of each ordered pair."""
    rows = np.asarray(triplets, np.int64).reshape(-1, 3)
    _, first = np.unique((rows[:, 0] << 32) | rows[:, 1], return_index=True)
    return rows[np.sort(first)]


@dataclasses.dataclass(frozen=True)
class TrainingStatistics:
    """What the protocol needs to know of the training annotations; class 0 is the background.

    Attributes:
      predicate_counts: (Q,) how often each predicate is annotated.
      triplets: (subject class, predicate, object class) of all that occur.
    """

    predicate_counts: Sequence[int]
    triplets: Collection[tuple[int, int, int]]

    def tertiles(self) -> dict[str, np.ndarray]:
        """Predicates by frequency in training: a third each, most frequent first.

        50 predicates divide into 16, 17 and 17, as the field does; ties keep the order of classes.
        """
        counts = np.asarray(self.predicate_counts)[1:]
        order = np.argsort(-counts, kind="stable") + 1
        first, second = len(order) // 3, len(order) // 3 + (len(order) - len(order) // 3) // 2
        parts = order[:first], order[first:second], order[second:]
        return dict(zip(TERTILES, parts, strict=True))


class SGBRecall:
    """R, ngR, mR, zR and A at K as Scene-Graph-Benchmark defines them (docs/protocols.md).

    A triplet finds an annotation if all three classes are right and both boxes overlap theirs by
    IoU >= 0.5 (inclusive pixels); it may find several, and a repeated annotation counts each time.
    - **R**: one predicate for an ordered pair; found / annotated of each image, mean over images.
    - **ngR**: the same without that constraint.
    - **mR**: found / annotated of each image and predicate, mean over the images that have the
      predicate, then mean over all predicates; one that never occurs counts 0. Also over the
      predicates that are frequent, less frequent and rare in training (head, body, tail).
    - **zR**: R of the annotations whose three classes never occur together in training.
    - **A** (boxes given): the first K of the triplets on annotated pairs; found / annotated,
      pooled over all images.
    Images without annotation or without a predicted pair are left out.

    The state is a few numbers for each predicate, however many images there are.
    """

    protocol = "SGB"

    def __init__(
        self,
        num_predicates: int,
        training: TrainingStatistics,
        task: str = "sgdet",
        top_ks: Sequence[int] = (20, 50, 100),
        iou_threshold: float = 0.5,
    ):
        """`num_predicates` includes the background, class 0; `task` is one of TASKS."""
        if task not in TASKS:
            raise ValueError(f"task {task!r} is not one of {', '.join(TASKS)}")
        self.num_predicates = num_predicates
        self.training = training
        self.task = task
        self.top_ks = tuple(top_ks)
        self.iou_threshold = iou_threshold
        self._seen = np.unique(_codes(np.array(list(training.triplets))))
        cut_offs = len(self.top_ks)
        self.images = 0
        self.zero_shot_images = 0
        self.annotated = 0
        self.recall = np.zeros(cut_offs)  # Sums over images, as the next two.
        self.unconstrained_recall = np.zeros(cut_offs)
        self.zero_shot_recall = np.zeros(cut_offs)
        self.predicate_recall = np.zeros((num_predicates, cut_offs))  # Sums over images with it.
        self.predicate_images = np.zeros(num_predicates, np.int64)
        self.predicate_annotated = np.zeros(num_predicates, np.int64)
        self.pair_hits = np.zeros(cut_offs, np.int64)

    def update(
        self,
        gt_boxes: np.ndarray,
        gt_classes: np.ndarray,
        relationships: np.ndarray,
        predicted: RankedPairs,
    ) -> None:
        """Adds an image.

        Args:
          gt_boxes: (g, 4).
          gt_classes: (g,) int.
          relationships: (m, 3) int rows (subject, object, predicate), all that are annotated.
          predicted: with given boxes (sgcls, predcls), object i is the annotated object i.
        """
        annotated = np.asarray(relationships, np.int64).reshape(-1, 3)
        constrained, unconstrained = (
            np.asarray(rows, np.int64).reshape(-1, 3)
            for rows in (predicted.constrained, predicted.unconstrained)
        )
        if not len(annotated) or not (len(constrained) or len(unconstrained)):
            return
        gt_boxes = np.asarray(gt_boxes, np.float64).reshape(-1, 4)
        gt_classes = np.asarray(gt_classes)
        subjects, objects, predicates = annotated.T
        # (g, n): which predicted objects may stand for which annotated ones.
        stands_for = (overlaps(gt_boxes, predicted.boxes) >= self.iou_threshold) & (
            gt_classes[:, None] == np.asarray(predicted.classes)
        )

        def found_by(triplets: np.ndarray) -> np.ndarray:
            s, o, p = triplets[: max(self.top_ks)].T
            return self._found(  # (m, K) bool
                stands_for[subjects[:, None], s]
                & stands_for[objects[:, None], o]
                & (predicates[:, None] == p)
            )

        found = found_by(constrained)
        self.images += 1
        self.annotated += len(annotated)
        self.recall += found.mean(axis=0)
        self.unconstrained_recall += found_by(unconstrained).mean(axis=0)

        occurring, index, counts = np.unique(predicates, return_inverse=True, return_counts=True)
        hits = np.zeros((len(occurring), len(self.top_ks)))
        np.add.at(hits, index.reshape(-1), found)
        self.predicate_recall[occurring] += hits / counts[:, None]
        self.predicate_images[occurring] += 1
        self.predicate_annotated[occurring] += counts

        classes = np.stack([gt_classes[subjects], predicates, gt_classes[objects]], axis=1)
        codes = _codes(classes)
        # Sorted, so that a lookup does not go through all of them (as np.isin does).
        first, last = (np.searchsorted(self._seen, codes, side) for side in ("left", "right"))
        unseen = first == last
        if unseen.any():
            self.zero_shot_images += 1
            self.zero_shot_recall += found[unseen].mean(axis=0)

        if self.task != "sgdet":
            pairs = {tuple(pair) for pair in annotated[:, :2].tolist()}
            on_pair = [tuple(row) in pairs for row in constrained[:, :2].tolist()]
            self.pair_hits += found_by(constrained[np.array(on_pair, bool)]).sum(axis=0)

    def merge(self, other: "SGBRecall") -> None:
        """Adds the images of another state that was made with the same arguments."""
        mine = self.num_predicates, self.task, self.top_ks, self.iou_threshold
        theirs = other.num_predicates, other.task, other.top_ks, other.iou_threshold
        if mine != theirs or not np.array_equal(self._seen, other._seen):
            raise ValueError("only states that were made with the same arguments can be merged")
        self.images += other.images
        self.zero_shot_images += other.zero_shot_images
        self.annotated += other.annotated
        self.recall += other.recall
        self.unconstrained_recall += other.unconstrained_recall
        self.zero_shot_recall += other.zero_shot_recall
        self.predicate_recall += other.predicate_recall
        self.predicate_images += other.predicate_images
        self.predicate_annotated += other.predicate_annotated
        self.pair_hits += other.pair_hits

    def compute(self) -> dict[str, float]:
        """In [0, 1]: `R@K`, `ngR@K`, `mR@K`, `zR@K`, `mR@K_head`, ...; `A@K` with given boxes.

        Then `images` (with annotation and prediction), `zero_shot_images` and
        `annotated_relationships` (repeated ones too).
        """
        per_predicate = self.per_predicate()
        groups = self.training.tertiles()
        values: dict[str, float] = {}
        for column, k in enumerate(self.top_ks):
            means = per_predicate[:, column]
            values[f"R@{k}"] = ratio(float(self.recall[column]), self.images)
            values[f"ngR@{k}"] = ratio(float(self.unconstrained_recall[column]), self.images)
            values[f"mR@{k}"] = _mean(means[1:])
            values[f"zR@{k}"] = ratio(float(self.zero_shot_recall[column]), self.zero_shot_images)
            if self.task != "sgdet":
                values[f"A@{k}"] = ratio(int(self.pair_hits[column]), self.annotated)
            values |= {f"mR@{k}_{name}": _mean(means[group]) for name, group in groups.items()}
        return {
            **values,
            "images": self.images,
            "zero_shot_images": self.zero_shot_images,
            "annotated_relationships": self.annotated,
        }

    def per_predicate(self) -> np.ndarray:
        """(Q, K) mean recall of each predicate over the images that have it, 0 without any."""
        return self.predicate_recall / np.maximum(self.predicate_images, 1)[:, None]

    def _found(self, matches: np.ndarray) -> np.ndarray:
        """(m, T) bool -> (m, K): whether the first K triplets find each annotation."""
        return np.stack([matches[:, :k].any(axis=1) for k in self.top_ks], axis=1)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else EMPTY


def _codes(triplets: np.ndarray) -> np.ndarray:
    """One int64 for each (subject class, predicate, object class); (t, 3) -> (t,)."""
    rows = np.asarray(triplets, np.int64).reshape(-1, 3)
    return (rows[:, 0] << 40) | (rows[:, 1] << 20) | rows[:, 2]
