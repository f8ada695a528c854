"""Measures predictions by the protocols of scene graph generation, side by side."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from fnet_jax.errors import UserError
from fnet_jax.kernels import triplet_nms
from fnet_jax.metrics import FNetRecall, RankedPairs, SGBRecall, TrainingStatistics, Triplets
from fnet_jax.metrics.sgb import one_per_pair
from fnet_jax.predictions import Prediction

PROTOCOLS = ("fnet", "sgb")
# F-Net's own choice of triplets from a longer list.
_PREDICATES_PER_PAIR = 10
_TRIPLET_NMS = 0.4
_MIN_SLOTS = 128

# Compiled: without it every image would trace the loop anew, which takes most of a second.
_triplet_nms = jax.jit(triplet_nms, static_argnames=("iou_threshold", "max_output"))


def task_of(use_gt_boxes: bool, use_gt_labels: bool) -> str:
    """The field's name of what the network is given besides the image."""
    if use_gt_labels and not use_gt_boxes:
        raise UserError(
            "config.test.use_gt_labels needs --config.test.use_gt_boxes=True, too: "
            "labels are given for boxes (task PredCls)"
        )
    return "predcls" if use_gt_labels else "sgcls" if use_gt_boxes else "sgdet"


def check_protocols(names: Sequence[str]) -> tuple[str, ...]:
    """`names` if all are protocols; UserError otherwise."""
    unknown = [name for name in names if name not in PROTOCOLS]
    if unknown or not names:
        what = f"{', '.join(unknown)} is unknown" if unknown else "none is named"
        raise UserError(f"protocol: {what}; choose from {', '.join(PROTOCOLS)}")
    return tuple(names)


class Scores:
    """The states of all protocols asked for; takes one image at a time, and merges."""

    def __init__(
        self,
        protocols: Sequence[str],
        num_predicates: int,
        training: TrainingStatistics,
        task: str = "sgdet",
    ):
        """`num_predicates` includes the background; `task` is one of `metrics.TASKS`."""
        self.task = task
        self.states: dict[str, FNetRecall | SGBRecall] = {}
        for name in check_protocols(protocols):
            if name == "fnet":
                self.states[name] = FNetRecall()
            else:
                self.states[name] = SGBRecall(num_predicates, training, task)

    def update(self, record: Mapping, prediction: Prediction) -> None:
        """Adds an image: its annotation (`boxes`, `classes`, `relationships`), and what was found.

        Raises:
          UserError: objects are not the annotated ones though the task gives them.
        """
        boxes, classes = record["boxes"], record["classes"]
        if self.task != "sgdet":
            _check_given(boxes, classes, prediction, self.task)
        for name, state in self.states.items():
            if name == "fnet":
                count = max(state.top_ns)
                found = _fnet_triplets(prediction, count, thin=self.task == "sgdet")
                state.update(boxes, classes, record["relationships"], found)
            else:
                state.update(boxes, classes, record["relationships"], _sgb_rankings(prediction))

    def merge(self, other: "Scores") -> None:
        """Adds the images of another state that was made with the same arguments."""
        for name, state in self.states.items():
            state.merge(other.states[name])

    def compute(self) -> dict[str, float]:
        """F-Net's metrics under their own names, SGB's as `sgb_R@20` and so on."""
        values: dict[str, float] = {}
        if "fnet" in self.states:
            values |= self.states["fnet"].compute()
        if "sgb" in self.states:
            values |= {f"sgb_{key}": value for key, value in self.states["sgb"].compute().items()}
        return values

    def per_predicate(self, predicate_names: Sequence[str]) -> dict[str, dict[str, float]]:
        """For each predicate its training and test counts and, of SGB, its mean recall at K."""
        state = self.states.get("sgb")
        if state is None:
            return {}
        recalls = state.per_predicate()
        return {
            predicate_names[index]: {
                "training": int(state.training.predicate_counts[index]),
                "annotated": int(state.predicate_annotated[index]),
                "images": int(state.predicate_images[index]),
                **{f"R@{k}": float(recalls[index, i]) for i, k in enumerate(state.top_ks)},
            }
            for index in range(1, len(predicate_names))
        }


def _check_given(boxes: np.ndarray, classes: np.ndarray, prediction: Prediction, task: str) -> None:
    related = np.unique(prediction.triplets[:, :2])
    given = len(boxes)
    same = len(related) == 0 or (
        related[-1] < given
        and np.allclose(prediction.boxes[related], boxes[related], atol=1.0)
        and (task != "predcls" or np.array_equal(prediction.classes[related], classes[related]))
    )
    if not same:
        what = "boxes and classes" if task == "predcls" else "boxes"
        raise UserError(
            f"task {task} gives the {given} annotated {what}, so that related objects must be "
            "these, in the order of the annotation"
        )


def _fnet_triplets(prediction: Prediction, count: int, thin: bool) -> Triplets:
    """The first `count` triplets that F-Net's protocol looks at; `thin` allows triplet NMS."""
    rows = prediction.ranked("fnet")
    if "fnet" not in prediction.rankings:
        rows = _first_predicates(rows)
        if thin and len(rows):
            rows = _thinned(prediction, rows, count)
    subjects, objects, predicates = rows[:count].T
    return Triplets(
        subject_classes=prediction.classes[subjects],
        predicates=predicates,
        object_classes=prediction.classes[objects],
        subject_boxes=prediction.boxes[subjects],
        object_boxes=prediction.boxes[objects],
    )


def _first_predicates(rows: np.ndarray) -> np.ndarray:
    """Of ranked (t, 3) rows the first ten of each ordered pair."""
    if len(rows) <= _PREDICATES_PER_PAIR:
        return rows
    order = np.lexsort((np.arange(len(rows)), rows[:, 1], rows[:, 0]))
    pairs = rows[order, :2]
    new = np.concatenate([[True], (pairs[1:] != pairs[:-1]).any(axis=1)])
    starts = np.flatnonzero(new)
    place = np.arange(len(rows)) - np.repeat(starts, np.diff([*starts, len(rows)]))
    return rows[np.sort(order[place < _PREDICATES_PER_PAIR])]


def _thinned(prediction: Prediction, rows: np.ndarray, count: int) -> np.ndarray:
    """The first `count` of what triplet NMS leaves of ranked rows."""
    # A few sizes, so that few programs are compiled.
    slots = max(_MIN_SLOTS, 1 << (len(rows) - 1).bit_length())
    padded = np.pad(rows, ((0, slots - len(rows)), (0, 0)))
    subjects, objects, predicates = padded.T
    kept = _triplet_nms(
        prediction.boxes[subjects],
        prediction.boxes[objects],
        prediction.classes[subjects].astype(np.int32),
        predicates.astype(np.int32),
        prediction.classes[objects].astype(np.int32),
        iou_threshold=_TRIPLET_NMS,
        max_output=min(slots, count),
        mask=np.arange(slots) < len(rows),
    )
    return rows[np.asarray(kept.indices)[np.asarray(kept.mask)]]


def _sgb_rankings(prediction: Prediction) -> RankedPairs:
    unconstrained = prediction.ranked("sgb_unconstrained")
    ranked = prediction.ranked("sgb") if "sgb" in prediction.rankings else unconstrained
    # A ranking of unknown origin is not taken at its word.
    constrained = one_per_pair(ranked)
    return RankedPairs(prediction.boxes, prediction.classes, constrained, unconstrained)


RULES = {
    "fnet": "F-Net: all images pooled; at most 10 predicates of a pair, triplet NMS 0.4; "
    "the last annotation of a pair counts; IoU >= 0.5",
    "sgb": "SGB: mean over images; R, mR, zR: one predicate of a pair, ngR: all; "
    "every annotation counts; IoU >= 0.5",
}
