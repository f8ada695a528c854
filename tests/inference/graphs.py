"""Made-up scene graphs, seeded: as many objects as wanted, with the names of everyday things."""

import numpy as np

from fnet_jax.predictions import SCHEMA, VERSION

CLASSES = (
    *("person", "horse", "hat", "table", "cup", "window", "tree"),
    *("building", "dog", "bicycle", "street", "sign", "jacket"),
)
PREDICATES = ("on", "next to", "behind", "in front of", "wearing", "holding", "has", "near")


def scene(count: int, *, relations: int | None = None, seed: int = 0, size=(120, 160)):
    """An image (h, w, 3) uint8 of noise and a graph of `count` objects.

    Args:
      count: of objects, none of which duplicates another.
      relations: how many, each of another pair of objects; 1.5 per object by default.
      seed: of boxes, names, pairs and scores.
      size: height and width of the image, pixels.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    if relations is None:
        relations = min(count + count // 2, count * (count - 1))
    sides = rng.uniform(0.08, 0.4, (count, 2)) * (width, height)
    corners = rng.uniform(0, 1, (count, 2)) * ((width, height) - sides)
    boxes = np.concatenate([corners, corners + sides - 1], axis=1)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    # Products of three probabilities: over many magnitudes, the best first.
    scores = np.sort(np.prod(rng.uniform(0.001, 1, (relations, 3)), axis=1))[::-1]
    graph = {
        "schema": SCHEMA,
        "version": VERSION,
        "image": f"scene_{seed}.jpg",
        "height": height,
        "width": width,
        "objects": [
            {
                "class": CLASSES[rng.integers(len(CLASSES))],
                "box": [round(side, 2) for side in box],
                "score": round(rng.uniform(0.05, 1), 4),
            }
            for box in boxes.tolist()
        ],
        "triplets": [
            {
                "subject": pairs[pair][0],
                "predicate": PREDICATES[rng.integers(len(PREDICATES))],
                "object": pairs[pair][1],
                "score": float(f"{score:.6g}"),
            }
            for pair, score in zip(
                rng.permutation(len(pairs))[:relations], scores.tolist(), strict=True
            )
        ],
    }
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, graph


def empty(image: str = "empty.png", size=(60, 80)) -> tuple[np.ndarray, dict]:
    """An image and a graph without objects and triplets."""
    height, width = size
    graph = {
        "schema": SCHEMA,
        "version": VERSION,
        "image": image,
        "height": height,
        "width": width,
        "objects": [],
        "triplets": [],
    }
    return np.full((*size, 3), 128, np.uint8), graph
