"""Composes a scene: which shapes, where, in which painting order, and how they are related.

Every relationship can be read off the picture: pairs that a person would hesitate about (barely
touching, diagonal, nearly equal in size) are either redrawn or left unannotated.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np

from fnet_jax.datasets.shapes import drawing

OBJECT_CLASSES = tuple(drawing.OUTLINES)
_INVERSE = {
    "beside": "beside",
    "above": "below",
    "below": "above",
    "inside": "around",
    "around": "inside",
    "in front of": "behind",
    "behind": "in front of",
    "larger than": "smaller than",
    "smaller than": "larger than",
}
PREDICATES = tuple(_INVERSE)

_HEIGHT, _WIDTHS = 128, (128, 144, 160)  # Pixels; one padded size holds them all.
_MIN_SIDE, _MAX_SIDE = 30.0, 76.0
_MIN_VISIBLE = 0.65  # Of each object's area, so that its class can be seen.
_NEAR = 10.0  # Pixels of gap between boxes that still count as neighbours.
_UPRIGHT = 1.25  # One offset must exceed the other by this factor to name a direction.
_LARGER = 1.6  # Ratio of areas from which two of a kind are compared by size.


@dataclasses.dataclass
class Item:
    """One shape: its class, curves, painted coverage and filled silhouette (both (h, w) bool)."""

    label: int
    curves: list[np.ndarray]
    painted: np.ndarray
    silhouette: np.ndarray

    @functools.cached_property
    def area(self) -> int:
        """Pixels painted, hidden ones included."""
        return np.count_nonzero(self.painted)

    @functools.cached_property
    def extent(self) -> tuple[int, int, int, int]:
        """(x1, y1, x2, y2) of the whole shape, hidden parts included, inclusive pixels."""
        return tight_box(self.painted)


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest (x1, y1, x2, y2), inclusive, around the True pixels of a (h, w) mask."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return x, y, x + width - 1, y + height - 1


def _meeting(upper: Item, lower: Item) -> str | None:
    """How `upper`, painted later, meets `lower`: a predicate, "apart", or None if unclear."""
    ax1, ay1, ax2, ay2 = upper.extent
    bx1, by1, bx2, by2 = lower.extent
    if ax2 < bx1 or bx2 < ax1 or ay2 < by1 or by2 < ay1:
        return "apart"
    if not (upper.silhouette & lower.silhouette).any():
        return "apart"
    if np.count_nonzero(upper.painted & lower.silhouette) >= 0.97 * upper.area:
        return "inside" if upper.area < 0.55 * np.count_nonzero(lower.silhouette) else None
    hidden = np.count_nonzero(upper.painted & lower.painted)
    smaller = min(upper.area, lower.area)
    return "in front of" if 0.1 * smaller <= hidden <= 0.4 * smaller else None


def _neighbours(first: Item, second: Item) -> str | None:
    """The predicate of two shapes that do not overlap, or None if they are not related."""
    a, b = np.array(first.extent, float), np.array(second.extent, float)
    gap = np.maximum(b[:2] - a[2:], a[:2] - b[2:]).max()
    if gap > _NEAR:
        return None
    if first.label == second.label:
        ratio = first.area / second.area
        if ratio >= _LARGER:
            return "larger than"
        if ratio <= 1 / _LARGER:
            return "smaller than"
    dx, dy = (b[:2] + b[2:] - a[:2] - a[2:]) / 2
    if abs(dx) >= _UPRIGHT * abs(dy):
        return "beside"
    if abs(dy) >= _UPRIGHT * abs(dx):
        return "above" if dy > 0 else "below"
    return None


def relate(items: list[Item]) -> list[tuple[int, int, int]]:
    """All relationships of a scene: (subject, object, predicate from 1), both ways round.

    Items are in painting order. A pair gets the first that applies of: inside / around, in front
    of / behind, (two of a kind, side by side) larger / smaller than, and beside, above or below.
    What lies inside another shape has no neighbours outside it.
    """
    pairs = [(high, low) for low in range(len(items)) for high in range(low + 1, len(items))]
    meetings = {pair: _meeting(items[pair[0]], items[pair[1]]) for pair in pairs}
    enclosed = {high for (high, _), meeting in meetings.items() if meeting == "inside"}
    relationships = []
    for (high, low), predicate in meetings.items():
        if predicate == "apart" and not enclosed & {high, low}:
            predicate = _neighbours(items[high], items[low])
        if predicate in _INVERSE:
            relationships.append((high, low, PREDICATES.index(predicate) + 1))
            relationships.append((low, high, PREDICATES.index(_INVERSE[predicate]) + 1))
    return relationships


def _propose(
    label: int, anchor: Item | None, height: int, width: int, rng: np.random.Generator
) -> Item | None:
    """A random shape near `anchor` (anywhere without one), or None if it leaves the canvas."""
    side = math.exp(rng.uniform(math.log(_MIN_SIDE), math.log(_MAX_SIDE)))
    if anchor is None:
        x, y = rng.uniform(0, width), rng.uniform(0, height)
    else:
        x1, y1, x2, y2 = anchor.extent
        if rng.random() < 0.25:  # Aim at the middle of it, small: likely inside.
            side = rng.uniform(_MIN_SIDE, 42)
            dx, dy = rng.normal(0, 3), rng.normal(0, 3)
        else:  # Mostly along an axis: exact diagonals have no name.
            angle = rng.integers(4) * math.pi / 2 + rng.normal(0, 0.3)
            distance = (max(x2 - x1, y2 - y1) + side) / 2 * rng.uniform(0.7, 1.25)
            dx, dy = distance * math.cos(angle), distance * math.sin(angle)
        x, y = (x1 + x2) / 2 + dx, (y1 + y2) / 2 + dy
    aspect, tilt = math.exp(rng.normal(0, 0.08)), math.radians(rng.uniform(-12, 12))
    reach = side / 4  # No shape is so slim: a quick look before the outline is placed.
    if not (reach < x < width - reach and reach < y < height - reach):
        return None
    curves = drawing.place(OBJECT_CLASSES[label - 1], (x, y), side, aspect, tilt)
    (x1, y1), (x2, y2) = curves[0].min(axis=0).tolist(), curves[0].max(axis=0).tolist()
    if min(x1, y1) < 3 or x2 > width - 4 or y2 > height - 4:
        return None
    painted = drawing.occupied(curves, height, width)
    silhouette = drawing.occupied(curves[:1], height, width) if len(curves) > 1 else painted
    return Item(label, curves, painted, silhouette)


def _visible(items: list[Item]) -> list[np.ndarray]:
    """What is left of each item (in painting order) once all are painted: (h, w) bool masks."""
    covered = np.zeros_like(items[0].painted)
    visible = []
    for item in reversed(items):
        visible.append(item.painted & ~covered)
        covered = covered | item.painted
    return visible[::-1]


def _fits(item: Item, items: list[Item]) -> bool:
    """Whether `item`, painted last, meets all `items` clearly and leaves them visible."""
    if any(_meeting(item, other) is None for other in items):
        return False
    grown = [*items, item]
    return all(
        np.count_nonzero(seen) >= _MIN_VISIBLE * whole.area
        for seen, whole in zip(_visible(grown), grown, strict=True)
    )


def _compose(height: int, width: int, rng: np.random.Generator) -> list[Item]:
    """Up to six shapes in painting order, each clear of, in front of or inside the others."""
    items: list[Item] = []
    for _ in range(rng.choice([3, 4, 5, 6], p=[0.3, 0.3, 0.25, 0.15])):
        repeat = items and rng.random() < 0.3
        label = items[-1].label if repeat else int(rng.integers(1, len(OBJECT_CLASSES) + 1))
        for _ in range(60):
            anchor = items[rng.integers(len(items))] if items else None
            item = _propose(label, anchor, height, width, rng)
            if item is not None and _fits(item, items):
                items.append(item)
                break
    return items


def _colours(hue: float, rng: np.random.Generator, value: tuple[float, float]) -> np.ndarray:
    """Two shades (2, 3) BGR of one hue (0 to 180), the second darker or lighter than the first."""
    saturation, first = rng.uniform(130, 235), rng.uniform(*value)
    second = np.clip(first + rng.choice([-1, 1]) * rng.uniform(35, 70), 30, 255)
    hsv = np.array([[[hue % 180, saturation, first], [hue % 180, saturation, second]]])
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)[0].astype(np.float32)


def _class_hue(label: int, rng: np.random.Generator) -> float:
    """A hue around the one its class prefers; neighbouring classes overlap at the edges."""
    step = 180 / len(OBJECT_CLASSES)
    return (label - 1) * step + rng.normal(0, 0.22 * step)


def _contrasting(hue: float, rng: np.random.Generator, taken: list[np.ndarray]) -> np.ndarray:
    """Shades of `hue` far from all in `taken` ((3,) BGR each), or the farthest of twenty tries."""
    best, best_distance = None, -1.0
    for _ in range(20):
        pair = _colours(hue, rng, (110, 245))
        distance = min(np.linalg.norm(pair.mean(axis=0) - other) for other in taken)
        if distance > best_distance:
            best, best_distance = pair, distance
        if best_distance > 90:
            break
    return best


def _paint_over(
    canvas: np.ndarray, item: Item, colours: np.ndarray, rng: np.random.Generator
) -> None:
    """Paints one shape, textured and with a dark rim, into the (h, w, 3) float32 canvas."""
    x1, y1, x2, y2 = item.extent
    margin = 2  # Half the rim and the antialiased fringe; `_propose` keeps that much free.
    patch = canvas[y1 - margin : y2 + margin + 1, x1 - margin : x2 + margin + 1]
    height, width = patch.shape[:2]
    curves = [curve - [x1 - margin, y1 - margin] for curve in item.curves]
    texture = drawing.paint(int(rng.integers(len(drawing.TEXTURES))), colours, height, width, rng)
    cover = drawing.fill(curves, height, width)[..., None]
    rim = drawing.edge(curves, height, width)[..., None]
    patch += cover * (texture - patch)
    patch += rim * (0.35 * colours.min(axis=0) - patch)


def draw(rng: np.random.Generator) -> tuple[np.ndarray, list, list[int], list]:
    """Draws one scene.

    Args:
      rng: the only source of randomness.

    Returns:
      image (h, w, 3) uint8 BGR; boxes of what is visible, (x1, y1, x2, y2) inclusive pixels;
      labels from 1; relationships (subject, object, predicate from 1).
    """
    height, width = _HEIGHT, int(rng.choice(_WIDTHS))
    items: list[Item] = []
    while len(items) < 3:  # A first shape that fills the canvas can leave no room for others.
        items = _compose(height, width, rng)

    # Dull, so that any bright shape stands out.
    ground = _colours(rng.uniform(0, 180), rng, (50, 120)) * 0.6 + 40
    canvas = drawing.paint(int(rng.integers(len(drawing.TEXTURES))), ground, height, width, rng)
    taken = [ground.mean(axis=0)]
    for item in items:
        colours = _contrasting(_class_hue(item.label, rng), rng, taken)
        taken.append(colours.mean(axis=0))
        _paint_over(canvas, item, colours, rng)
    canvas += 5 * rng.standard_normal(canvas.shape, np.float32)

    boxes = [tight_box(mask) for mask in _visible(items)]
    order = rng.permutation(len(items))  # The list must not give the painting order away.
    rank = np.argsort(order)
    relationships = [(int(rank[s]), int(rank[o]), p) for s, o, p in relate(items)]
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return image, [boxes[i] for i in order], [items[i].label for i in order], sorted(relationships)
