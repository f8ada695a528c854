"""What an evaluation leaves behind: a scene graph per image (JSONL), the metrics (JSON), a table.

A line of the JSONL file is one image:

    {"schema": "fnet-jax/scene-graph", "version": 1, "image": file name, "height": int,
     "width": int, "objects": [{"class": name, "box": [x1, y1, x2, y2], "score": float}, ...],
     "triplets": [{"subject": i, "predicate": name, "object": j, "score": float}, ...]}

Boxes are inclusive pixels of the original image, i and j index `objects`, triplets are ranked from
the most certain to the least.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from fnet_jax.metrics import FNetRecall
from fnet_jax.structures import SceneGraph

SCHEMA = "fnet-jax/scene-graph"
VERSION = 1

# Decimals of a box (pixels) and significant digits of a score in files.
_BOX_DECIMALS = 2
_SCORE_DIGITS = 6


def graph_to_dict(
    graph: SceneGraph,
    image: str,
    height: int,
    width: int,
    object_names: Sequence[str],
    predicate_names: Sequence[str],
) -> dict:
    """One image's SceneGraph (no batch axis) as the dict of the JSONL file.

    Args:
      graph: arrays or what NumPy can read; padded slots are dropped and indices moved up.
      image: file name.
      height, width: of the original image, pixels.
      object_names, predicate_names: by class index, entry 0 being the background.

    Raises:
      ValueError: a triplet in use refers to an object slot that is not.
    """
    object_mask = np.asarray(graph.object_mask)
    slots = np.flatnonzero(object_mask)
    ranks = np.flatnonzero(np.asarray(graph.triplet_mask))
    subjects, objects = np.asarray(graph.subjects)[ranks], np.asarray(graph.objects)[ranks]
    if not (object_mask[subjects].all() and object_mask[objects].all()):
        raise ValueError(f"a triplet of {image} refers to an object that does not exist")
    position = np.cumsum(object_mask) - 1
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "image": image,
        "height": int(height),
        "width": int(width),
        "objects": [
            {
                "class": object_names[label],
                "box": [round(side, _BOX_DECIMALS) for side in box],
                "score": _significant(score),
            }
            for label, box, score in zip(
                np.asarray(graph.classes)[slots].tolist(),
                np.asarray(graph.boxes)[slots].tolist(),
                np.asarray(graph.scores)[slots].tolist(),
                strict=True,
            )
        ],
        "triplets": [
            {
                "subject": subject,
                "predicate": predicate_names[predicate],
                "object": object_,
                "score": _significant(score),
            }
            for subject, predicate, object_, score in zip(
                position[subjects].tolist(),
                np.asarray(graph.predicates)[ranks].tolist(),
                position[objects].tolist(),
                np.asarray(graph.triplet_scores)[ranks].tolist(),
                strict=True,
            )
        ],
    }


def annotation_to_dict(
    record: Mapping, object_names: Sequence[str], predicate_names: Sequence[str]
) -> dict:
    """An annotated image in the same form, all scores 1, so that it can be drawn alike.

    Args:
      record: `filename`, `height`, `width`, `boxes` (g, 4), `classes` (g,) and `relationships`
        (m, 3) rows (subject, object, predicate); all of them are kept, in order.
      object_names, predicate_names: as for `graph_to_dict`.
    """
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "image": str(record["filename"]),
        "height": int(record["height"]),
        "width": int(record["width"]),
        "objects": [
            {"class": object_names[label], "box": box, "score": 1.0}
            for label, box in zip(
                np.asarray(record["classes"]).tolist(),
                np.asarray(record["boxes"]).tolist(),
                strict=True,
            )
        ],
        "triplets": [
            {
                "subject": subject,
                "predicate": predicate_names[predicate],
                "object": object_,
                "score": 1.0,
            }
            for subject, object_, predicate in np.asarray(record["relationships"]).tolist()
        ],
    }


class ResultsWriter:
    """Writes JSONL line by line, readable while it grows, under its name once complete.

    Until the `with` block ends without an exception the lines are in `PATH.partial`; after an
    exception they stay there, and PATH, if it existed, is as it was.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._partial = _partial(self.path)

    def __enter__(self) -> "ResultsWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("w", encoding="utf-8")
        return self

    def write(self, line: Mapping) -> None:
        """Appends a line and hands it to the operating system."""
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def __exit__(self, exception_type, exception, traceback) -> None:
        self._file.close()
        if exception_type is None:
            os.replace(self._partial, self.path)


def read_results(path: str | os.PathLike) -> list[dict]:
    """All lines of a JSONL file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_metrics(path: str | os.PathLike, metrics: Mapping) -> None:
    """Writes metrics as JSON, with the name of their protocol; never seen half written.

    Raises:
      ValueError: a metric is not finite.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"protocol": FNetRecall.protocol, **metrics}
    partial = _partial(path)
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def format_table(metrics: Mapping) -> str:
    """The metrics of `fnet_jax.evaluate.evaluate` as a table for the screen."""
    top_ns = _cut_offs(metrics, "relationship_recall")
    title = f"{FNetRecall.protocol} protocol (all images pooled), IoU >= 0.5"
    if metrics["use_gt_boxes"]:
        title += ", annotated boxes given"
    header = f"{'recall in %':<16}" + "".join(f"{f'@{n}':>10}" for n in top_ns)
    lines = [title, header, "-" * len(header)]
    for kind in FNetRecall.kinds:
        values = (100.0 * metrics[f"{kind}_recall@{n}"] for n in top_ns)
        lines.append(f"{kind:<16}" + "".join(f"{value:>10.3f}" for value in values))
    lines.append("-" * len(header))

    def row(label: str, value: str) -> None:
        lines.append(f"{label:<36}  {value}")

    row("object mAP in % (VOC, IoU > 0.5)", f"{100.0 * metrics['mAP']:.3f}")
    for n in _cut_offs(metrics, "rpn_recall"):
        row(f"RPN recall@{n} in %", f"{100.0 * metrics[f'rpn_recall@{n}']:.3f}")
    average, maximum = metrics["subgraphs_average"], metrics["subgraphs_maximum"]
    row("subgraphs per image", f"{average:.1f}, at most {maximum}")
    pairs, images = metrics["overflowed_pairs"], metrics["overflowed_images"]
    row("pairs left without a subgraph", f"{pairs} (in {images} images)" if pairs else "none")
    if "seconds_per_image" in metrics:
        row("seconds per image", f"{metrics['seconds_per_image']:.3f}")
    row("images", str(metrics["images"]))
    row("annotated relationships", str(metrics["annotated_relationships"]))
    return "\n".join(lines)


def _cut_offs(metrics: Mapping, name: str) -> list[int]:
    return sorted(int(key.partition("@")[2]) for key in metrics if key.startswith(f"{name}@"))


def _significant(score: float) -> float:
    """Rounded to a few significant digits, not decimals: scores far down the ranking are tiny."""
    return float(f"{score:.{_SCORE_DIGITS}g}")


def _partial(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".partial")
