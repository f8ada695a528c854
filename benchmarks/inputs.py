"""Arrays of the sizes and kinds that the published model meets; benchmarks and tests share them.

An image of 600 x 800 pixels is a map of 37 x 50 cells with 25 anchors each, of which 12000 go into
NMS; 200 objects make 40,000 pairs at test, 256 make 65,536 in training.
"""

import numpy as np

from fnet_jax.anchors import base_anchors, shifted_anchors
from fnet_jax.kernels import DELTA_STD

IMAGE = (600, 800)
MAP = (37, 50)
CHANNELS = 512
PRE_NMS = 12000
TEST_OBJECTS, TRAIN_OBJECTS = 200, 256
POOL_SIZES = (5, 7)
# (threshold, kept) of the proposals, at test and in training.
TEST_NMS, TRAIN_NMS = (0.6, 300), (0.7, 2000)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """`[count, 4]` float32 boxes anywhere in the image, of any size: what an untrained RPN says."""
    size = np.exp(rng.uniform(np.log(16), np.log(500), (count, 2)))
    corner = rng.uniform(-0.3, 1.0, (count, 2)) * np.array(IMAGE[::-1])
    boxes = np.concatenate([corner, corner + size], axis=1)
    return _clip(boxes)


def trained_boxes(rng: np.random.Generator, count: int, objects: int = 14) -> np.ndarray:
    """`[count, 4]` float32 boxes, best first, in heaps about few objects, as a trained RPN's are.

    The further down, the looser: the last third is nearly anywhere.
    """
    size = np.exp(rng.uniform(np.log(40), np.log(420), (objects, 2)))
    centre = rng.uniform(0.1, 0.9, (objects, 2)) * np.array(IMAGE[::-1])
    place = rng.integers(0, objects, count)
    looseness = 0.05 + 0.9 * np.linspace(0.0, 1.0, count)[:, None]
    centre = centre[place] + rng.normal(size=(count, 2)) * looseness * size[place]
    size = size[place] * np.exp(0.6 * looseness * rng.normal(size=(count, 2)))
    return _clip(np.concatenate([centre - size / 2, centre + size / 2], axis=1))


def detections(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `[count, 4]` float32 and classes `[count]` int32: 14 things, each found repeatedly."""
    things = random_boxes(rng, 14)
    thing = rng.integers(0, len(things), count).astype(np.int32)
    sides = np.tile(things[:, 2:] - things[:, :2], 2)
    return _clip(things[thing] + 0.05 * sides[thing] * rng.normal(size=(count, 4))), thing + 1


def rpn_outputs(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a trained RPN says of the image: good anchors are likely and moved onto an object.

    Returns:
      (probabilities `[37, 50, 25]`, deltas `[37, 50, 25, 4]`, anchors `[25, 4]`), all float32.
    """
    shapes = np.meshgrid((2, 4, 8, 16, 28), (0.25, 0.5, 1, 2, 4), indexing="ij")
    base = base_anchors(*(shape.ravel() for shape in shapes))
    anchors = np.array(shifted_anchors(base, *MAP))
    things = random_boxes(rng, 14)
    overlap = np.stack([iou(thing, anchors) for thing in things])  # [things, anchors]
    thing, overlap = things[overlap.argmax(axis=0)], overlap.max(axis=0)
    sides, thing_sides = (x[:, 2:] - x[:, :2] + 1 for x in (anchors, thing))
    shift = (thing - anchors) @ np.tile(np.eye(2), (2, 1)) / 2 / sides
    exact = np.concatenate([shift, np.log(thing_sides / sides)], axis=1) / DELTA_STD
    deltas = np.where(overlap[:, None] > 0.3, 0.8 * exact, 0) + 0.7 * rng.normal(size=exact.shape)
    logits = 12 * (overlap - 0.5) + rng.normal(size=overlap.shape)
    shape = (*MAP, len(base))
    probabilities = 1 / (1 + np.exp(-logits))
    return (
        probabilities.reshape(shape).astype(np.float32),
        deltas.reshape(*shape, 4).astype(np.float32),
        base,
    )


def descending_scores(rng: np.random.Generator, count: int) -> np.ndarray:
    """`[count]` float32 in (0, 1), sorted: most candidates are poor ones."""
    return np.sort(rng.beta(0.4, 3.0, count).astype(np.float32))[::-1].copy()


def distinct(boxes: np.ndarray, iou_threshold: float, count: int) -> np.ndarray:
    """The first `count` boxes that greedy NMS leaves: regions of interest like the model's own."""
    kept: list[np.ndarray] = []
    for box in boxes:
        if len(kept) == count:
            break
        if not kept or iou(box, np.array(kept)).max() <= iou_threshold:
            kept.append(box)
    return np.array(kept)


def objects(rng: np.random.Generator, count: int, *, trained: bool) -> np.ndarray:
    """`[count, 4]` float32 boxes that survive test NMS."""
    candidates = (trained_boxes if trained else random_boxes)(rng, PRE_NMS)
    return distinct(candidates, TEST_NMS[0], count)


def features(rng: np.random.Generator, channels: int = CHANNELS) -> np.ndarray:
    """`[37, 50, channels]` float32, non-negative as after ReLU."""
    return np.maximum(rng.normal(size=(*MAP, channels)), 0).astype(np.float32)


def _clip(boxes: np.ndarray) -> np.ndarray:
    height, width = IMAGE
    clipped = np.clip(boxes, 0, [width - 17, height - 17, width - 1, height - 1])
    clipped[:, 2:] = np.maximum(clipped[:, 2:], clipped[:, :2] + 16)
    return clipped.astype(np.float32)


def iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU `[N]` of one box with others `[N, 4]`, inclusive pixels."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    intersection = np.prod(np.maximum(high - low + 1, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2] + 1, axis=1)
    return intersection / (np.prod(box[2:] - box[:2] + 1) + areas - intersection)
