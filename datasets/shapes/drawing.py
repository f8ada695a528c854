"""How a shape and a texture look: antialiased outlines and two-colour patterns, with OpenCV."""

from collections.abc import Callable

import cv2
import numpy as np

# OpenCV takes vertices as fixed point numbers with this many fractional bits.
_FRACTION_BITS = 4


def _polygon(angles: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=-1)  # (n, 2)


def _regular(corners: int, start: float) -> np.ndarray:
    return _polygon(start + 2 * np.pi * np.arange(corners) / corners, 1.0)


def _star() -> np.ndarray:
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    return _polygon(-np.pi / 2 + np.pi * np.arange(10) / 5, radii)


def _cross() -> np.ndarray:
    a = 0.34
    quarter = np.array([[a, -1], [a, -a], [1, -a]])
    turn = np.array([[0, 1], [-1, 0]])  # A quarter turn, clockwise on screen.
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _crescent() -> np.ndarray:
    # The outer arc and an arc of a second circle through the same two horns.
    horn = np.deg2rad(52.0)
    outer = _polygon(np.linspace(horn, 2 * np.pi - horn, 40), 1.0)
    centre = 0.5
    radius = np.hypot(np.cos(horn) - centre, np.sin(horn))
    inner_horn = np.arctan2(np.sin(horn), np.cos(horn) - centre)
    inner = _polygon(np.linspace(2 * np.pi - inner_horn, inner_horn, 40), radius)
    crescent = np.concatenate([outer, inner + np.array([centre, 0.0])])
    return crescent - [(crescent[:, 0].max() + crescent[:, 0].min()) / 2, 0.0]


_CIRCLE = _regular(48, 0.0)
# Closed curves in a frame of about [-1, 1]; a second curve is a hole.
OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": (_CIRCLE,),
    "square": (_regular(4, np.pi / 4) * 1.3,),
    "triangle": (_regular(3, -np.pi / 2) * 1.15,),
    "star": (_star() * 1.1,),
    "cross": (_cross(),),
    "ring": (_CIRCLE, _CIRCLE * 0.62),
    "diamond": (_regular(4, 0.0) * [0.72, 1.15],),
    "crescent": (_crescent(),),
}


def place(
    name: str, centre: tuple[float, float], side: float, aspect: float, angle: float
) -> list[np.ndarray]:
    """The curves of shape `name` on the canvas.

    Args:
      name: a key of OUTLINES.
      centre: (x, y) in pixels.
      side: about the longer side of the upright shape, in pixels.
      aspect: width over height relative to the regular shape.
      angle: rotation in radians, clockwise on screen.

    Returns:
      One (n, 2) float64 array of pixel positions per curve.
    """
    stretch = np.array([np.sqrt(aspect), 1 / np.sqrt(aspect)]) * side / 2
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, sin], [-sin, cos]])
    return [(curve * stretch) @ rotation + centre for curve in OUTLINES[name]]


def fill(curves: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Coverage in [0, 1] of each pixel by the curves, even-odd rule: (h, w) float32."""
    return _fill(curves, height, width).astype(np.float32) / 255


def occupied(curves: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Which pixels the curves cover at least half: (h, w) bool."""
    return _fill(curves, height, width) >= 128


def _fill(curves: list[np.ndarray], height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    points = [np.rint(curve * 2**_FRACTION_BITS).astype(np.int32) for curve in curves]
    cv2.fillPoly(mask, points, 255, lineType=cv2.LINE_AA, shift=_FRACTION_BITS)
    return mask


def edge(curves: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Coverage in [0, 1] of each pixel by the curves drawn two pixels wide: (h, w) float32."""
    mask = np.zeros((height, width), np.uint8)
    points = [np.rint(curve * 2**_FRACTION_BITS).astype(np.int32) for curve in curves]
    cv2.polylines(mask, points, True, 255, 2, lineType=cv2.LINE_AA, shift=_FRACTION_BITS)
    return mask.astype(np.float32) / 255


def _plain(x, y, period, rng):
    return np.zeros_like(x)


def _stripes(x, y, period, rng):
    return (np.sin(2 * np.pi * x / period) > 0).astype(np.float32)


def _checks(x, y, period, rng):
    return ((np.sin(np.pi * x / period) > 0) ^ (np.sin(np.pi * y / period) > 0)).astype(np.float32)


def _dots(x, y, period, rng):
    dx, dy = x % period - period / 2, y % period - period / 2
    return np.clip(period / 3 - np.hypot(dx, dy) + 0.5, 0, 1)


def _ramp(x, y, period, rng):
    return (x - x.min()) / np.ptp(x)


def _clouds(x, y, period, rng):
    coarse = rng.random((6, 6), np.float32)
    return cv2.resize(coarse, x.shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)


TEXTURES: tuple[Callable, ...] = (_plain, _stripes, _checks, _dots, _ramp, _clouds)


def paint(
    kind: int, colours: np.ndarray, height: int, width: int, rng: np.random.Generator
) -> np.ndarray:
    """A pattern of two colours over the whole canvas.

    Args:
      kind: index into TEXTURES.
      colours: (2, 3) BGR in [0, 255].
      height, width: canvas size in pixels.
      rng: draws the pattern's direction, period and phase.

    Returns:
      (h, w, 3) float32.
    """
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 11)
    row, column = np.mgrid[:height, :width].astype(np.float32) + rng.uniform(0, 20, 1)[0]
    x = np.float32(np.cos(angle)) * column + np.float32(np.sin(angle)) * row
    y = np.float32(-np.sin(angle)) * column + np.float32(np.cos(angle)) * row
    mix = TEXTURES[kind](x, y, np.float32(period), rng)[..., None].astype(np.float32)
    colours = colours.astype(np.float32)
    return colours[0] * (1 - mix) + colours[1] * mix
