"""How long scoring takes and how much memory it needs, at the size of Visual Genome's test split.

python benchmarks/score.py [--images 26000] [--triplets 100] [--protocols fnet,sgb]

Annotations are generated when they are asked for, predictions are written to a temporary file
(about 11 KB an image). No dataset is needed.
"""

import argparse
import json
import pathlib
import resource
import tempfile
import time

import numpy as np

from fnet_jax.metrics import TrainingStatistics
from fnet_jax.predictions import Prediction, to_line
from fnet_jax.protocols import PROTOCOLS, Scores
from fnet_jax.results import format_table
from fnet_jax.score import score_file

CLASSES, PREDICATES = 150, 50
HEIGHT, WIDTH = 600, 800
DETECTIONS = 40
SHARE_FOUND = 0.6  # of the annotated relationships


class GeneratedSplit:
    """What `score_file` needs of a split; every annotation follows from its index."""

    dataset, name = "generated", "test"

    def __init__(self, images: int):
        self.filenames = [f"{index}.jpg" for index in range(images)]
        self.object_classes = ("background", *(f"class {i}" for i in range(CLASSES)))
        self.predicates = ("background", *(f"predicate {i}" for i in range(PREDICATES)))
        seen = np.random.default_rng(0).integers(
            1, (CLASSES + 1, PREDICATES + 1, CLASSES + 1), (30_000, 3)
        )
        self.training = TrainingStatistics(
            (0, *range(PREDICATES, 0, -1)), {tuple(row) for row in seen.tolist()}
        )

    def __len__(self) -> int:
        return len(self.filenames)

    def record(self, index: int) -> dict:
        """5 to 20 objects and as many relationships, some pairs with several."""
        rng = np.random.default_rng(index)
        count = int(rng.integers(5, 21))
        return {
            "filename": self.filenames[index],
            "boxes": _boxes(rng, count),
            "classes": rng.integers(1, CLASSES + 1, count),
            "relationships": rng.integers((0, 0, 1), (count, count, PREDICATES + 1), (count, 3)),
        }


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.uniform(0, (WIDTH - 200, HEIGHT - 200), (count, 2))
    return np.concatenate([corners, corners + rng.uniform(20, 200, (count, 2))], axis=1)


def predicted(record: dict, seed: int, triplets: int) -> Prediction:
    """The annotated objects, a little off, and others; some annotated triplets among noise."""
    rng = np.random.default_rng([seed, 1])
    rows, count = record["relationships"], len(record["boxes"])
    boxes = np.concatenate([record["boxes"], _boxes(rng, DETECTIONS - count)])
    boxes += rng.normal(0, 2, boxes.shape)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    classes = rng.integers(1, CLASSES + 1, DETECTIONS)
    classes[:count] = record["classes"]
    found = rows[rng.random(len(rows)) < SHARE_FOUND][:triplets]
    noise = rng.integers(
        (0, 0, 1), (DETECTIONS, DETECTIONS, PREDICATES + 1), (triplets - len(found), 3)
    )
    return Prediction(
        boxes=boxes.astype(np.float32),
        classes=classes,
        scores=rng.random(DETECTIONS).astype(np.float32),
        triplets=rng.permutation(np.concatenate([found, noise])),
        triplet_scores=np.sort(rng.random(triplets)).astype(np.float32)[::-1],
        rankings={},
    )


def write(path: pathlib.Path, split: GeneratedSplit, triplets: int) -> None:
    """One line for each image."""
    with path.open("w", encoding="utf-8") as file:
        for index, name in enumerate(split.filenames):
            prediction = predicted(split.record(index), index, triplets)
            names = split.object_classes, split.predicates
            file.write(json.dumps(to_line(prediction, name, HEIGHT, WIDTH, *names)) + "\n")


def main() -> None:
    """Generates, scores and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=26_000)
    parser.add_argument("--triplets", type=int, default=100, help="of each image")
    parser.add_argument("--protocols", default=",".join(PROTOCOLS))
    options = parser.parse_args()
    split = GeneratedSplit(options.images)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "predictions.jsonl"
        start = time.perf_counter()
        write(path, split, options.triplets)
        written = time.perf_counter() - start
        size = path.stat().st_size / 1e6
        scores = Scores(options.protocols.split(","), len(split.predicates), split.training)
        before = _peak_megabytes()
        start = time.perf_counter()
        metrics = score_file(path, split, scores)
        seconds = time.perf_counter() - start
    print(format_table(metrics))
    print(f"written: {size:.0f} MB in {written:.1f} s")
    print(f"scored:  {seconds:.1f} s, {options.images / seconds:.0f} images per second")
    print(f"peak memory: {_peak_megabytes():.0f} MB, {before:.0f} MB of it before scoring")


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KB on Linux


if __name__ == "__main__":
    main()
