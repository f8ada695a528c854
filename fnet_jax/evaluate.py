"""The evaluation loop: a predictor and a split in, metrics and a scene graph per image out."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Protocol

import jax
import numpy as np
from tqdm import tqdm

from fnet_jax import multihost
from fnet_jax.errors import UserError
from fnet_jax.metrics import DetectionAP, ProposalRecall, overlaps
from fnet_jax.predictions import from_graph, to_line
from fnet_jax.protocols import Scores
from fnet_jax.results import PartWriter
from fnet_jax.structures import PaddedGraph

# The original reads detections for mAP off like this (`interpret_objects`).
_MIN_PROBABILITY = 1e-5
_MAX_DETECTIONS = 2000


class AnnotatedSplit(Protocol):
    """What the evaluation needs to know of a dataset split."""

    def record(self, index: int) -> Mapping:
        """The annotation of image `index`.

        Returns: `filename`, `height`, `width`, `boxes` (g, 4) pixels of the original image,
          `classes` (g,) and `relationships` (m, 3) rows (subject, object, predicate).
        """


def evaluate(
    predict_fn: Callable[[Mapping], PaddedGraph],
    split: AnnotatedSplit,
    batches: Iterable[Mapping],
    *,
    scores: Scores,
    object_names: Sequence[str],
    predicate_names: Sequence[str],
    results_path: str | os.PathLike | None = None,
    detection_nms: float | None = None,
    num_images: int | None = None,
) -> dict[str, float | str]:
    """Runs the predictor over all batches and measures what it finds.

    Several processes, each with the batches of its own images, get the same metrics of all.

    Args:
      predict_fn: a batch -> PaddedGraph with a leading batch axis.
      split: the annotations of the images.
      batches: dicts as the input pipeline gives them; `image_index` (B,) is the position in the
        split, `valid` (B,) is False for fillers.
      scores: fresh states of the protocols to measure relationships by.
      object_names, predicate_names: by class index, entry 0 being the background.
      results_path: JSONL file of scene graphs, one line per image; None writes none. Several
        processes must share its folder.
      detection_nms: IoU threshold of a per-class NMS before mAP; None, as the original, for none.
      num_images: how many to expect, for the progress bar.

    Returns:
      `task`, and numbers. In [0, 1]: what `scores` computes, `mAP` (VOC, area under the curve, IoU
      > 0.5, over annotated classes), `rpn_recall@50`. Then `subgraphs_average`,
      `subgraphs_maximum`, `overflowed_pairs` (without a subgraph slot), `overflowed_images`,
      `images`, `annotated_objects`, `annotated_classes`, and `seconds_per_image`: prediction
      alone, without the first batch of each shape, which compiles; absent if there was no other.

    Raises:
      UserError: there is no image, or the network's outputs are not finite.
    """
    proposals = ProposalRecall()
    detections = DetectionAP(len(object_names))
    subgraphs: list[int] = []
    overflows: list[int] = []
    clock = _Clock()
    writer = nullcontext() if results_path is None else PartWriter(results_path)
    # disable=None: no bar unless the output is a terminal.
    bar = tqdm(total=num_images, unit="image", desc="evaluate", disable=None, file=sys.stderr)
    with writer, bar:
        for batch in batches:
            graphs = clock.run(predict_fn, batch)
            for row in np.flatnonzero(batch["valid"]):
                graph = jax.tree.map(lambda array, row=row: array[row], graphs)
                record = split.record(int(batch["image_index"][row]))
                _check_finite(graph, record["filename"])
                boxes, classes = record["boxes"], record["classes"]
                prediction = from_graph(graph)
                scores.update(record, prediction)
                proposals.update(boxes, graph.proposals[graph.proposal_mask])
                detections.update(boxes, classes, *interpret_objects(graph, detection_nms))
                subgraphs.append(int(graph.num_subgraphs))
                overflows.append(int(graph.overflow))
                if results_path is not None:
                    about = record["filename"], record["height"], record["width"]
                    line = to_line(prediction, *about, object_names, predicate_names)
                    writer.write(line, int(batch["image_index"][row]))
                bar.update()
    # In the order of processes in each of them, so that all get the same to the last bit.
    first, *others = multihost.gather((scores, proposals, detections, clock, subgraphs, overflows))
    scores.states = first[0].states
    _, proposals, detections, clock, subgraphs, overflows = first
    for other in others:
        for state, of_other in zip((scores, *first[1:4]), other[:4], strict=True):
            state.merge(of_other)
        subgraphs += other[4]
        overflows += other[5]
    if not subgraphs:
        raise UserError("there is no image to evaluate; check the evaluation split")
    return {
        "task": scores.task,
        **scores.compute(),
        **detections.compute(),
        **proposals.compute(),
        "subgraphs_average": float(np.mean(subgraphs)),
        "subgraphs_maximum": max(subgraphs),
        "overflowed_pairs": sum(overflows),
        "overflowed_images": sum(overflow > 0 for overflow in overflows),
        "images": len(subgraphs),
        **clock.compute(),
    }


def interpret_objects(
    graph: PaddedGraph, nms: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detections of one image for mAP, read off as the original does.

    Every region counts as a detection of every class whose probability exceeds 1e-5, with that
    class's box. Of these the 2000 best are kept, and all that tie with the last of them.

    Args:
      graph: one image, NumPy arrays.
      nms: IoU above which a better detection of the same class removes another; None for none.

    Returns: boxes (n, 4) original pixels, scores (n,) and classes (n,), class by class in the
      order of the regions.
    """
    probabilities = np.where(graph.roi_mask[:, None], graph.class_probs, 0.0).T[1:]
    classes, regions = np.nonzero(probabilities > _MIN_PROBABILITY)
    scores = probabilities[classes, regions].astype(np.float32)
    classes += 1
    boxes = graph.class_boxes[regions, classes]
    if nms is not None:
        kept = _class_nms(boxes, scores, classes, nms)
        boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
    if len(scores) > _MAX_DETECTIONS:
        kept = scores >= np.partition(scores, -_MAX_DETECTIONS)[-_MAX_DETECTIONS]
        boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
    return boxes, scores, classes


def _class_nms(boxes, scores, classes, threshold: float) -> np.ndarray:
    """Indices, ascending, that greedy NMS within each class keeps; ties: lowest index first."""
    kept = []
    for label in np.unique(classes):
        rest = np.flatnonzero(classes == label)
        rest = rest[np.argsort(-scores[rest], kind="stable")]
        while len(rest):
            kept.append(rest[0])
            rest = rest[1:][overlaps(boxes[rest[:1]], boxes[rest[1:]])[0] <= threshold]
    return np.sort(np.array(kept, np.int64))


def _check_finite(graph: PaddedGraph, filename: str) -> None:
    # Unused slots may hold anything.
    used = {
        "class probabilities": graph.class_probs[graph.roi_mask],
        "boxes": graph.class_boxes[graph.roi_mask],
        "triplet scores": graph.triplet_scores[graph.triplet_mask],
    }
    bad = [name for name, values in used.items() if not np.isfinite(values).all()]
    if bad:
        raise UserError(
            f"the {', '.join(bad)} of image {filename} are not finite: "
            "the weights are broken; use an earlier checkpoint"
        )


class _Clock:
    """Times predictions, leaving out the first of each shape, which compiles."""

    def __init__(self):
        self._seen: set[tuple[int, ...]] = set()
        self._seconds = 0.0
        self._images = 0

    def run(self, predict_fn: Callable[[Mapping], PaddedGraph], batch: Mapping) -> PaddedGraph:
        """The batch's graphs as NumPy arrays."""
        start = time.perf_counter()
        # Copying to the host also waits for the device.
        graphs = jax.device_get(predict_fn(batch))
        seconds = time.perf_counter() - start
        shape = np.shape(batch["image"])
        if shape in self._seen:
            self._seconds += seconds
            self._images += int(np.sum(batch["valid"]))
        self._seen.add(shape)
        return graphs

    def merge(self, other: "_Clock") -> None:
        self._seconds += other._seconds
        self._images += other._images

    def compute(self) -> dict[str, float]:
        if not self._images:
            return {}
        return {"seconds_per_image": self._seconds / self._images}
