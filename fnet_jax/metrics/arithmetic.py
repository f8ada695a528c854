"""What all metrics share: overlap of boxes, and ratios of counts."""

import numpy as np

# A recall or precision of nothing at all (no annotation, no detection) is this, never NaN: the
# counts that `compute` reports beside it tell the two apart.
EMPTY = 0.0


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (N, M) float64 of inclusive boxes (N, 4) and (M, 4)."""
    a = np.asarray(a, np.float64).reshape(-1, 1, 4)
    b = np.asarray(b, np.float64).reshape(1, -1, 4)

    def area(low, high):
        return np.prod(np.maximum(high - low + 1.0, 0.0), axis=-1)

    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    intersection = area(low, high)
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - intersection
    # Inverted boxes have no area; two of them overlap by nothing.
    return intersection / np.where(union > 0.0, union, 1.0)


def unions(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest boxes around each pair of boxes: (N, 4), (N, 4) -> (N, 4)."""
    a, b = np.asarray(a).reshape(-1, 4), np.asarray(b).reshape(-1, 4)
    return np.concatenate([np.minimum(a[:, :2], b[:, :2]), np.maximum(a[:, 2:], b[:, 2:])], axis=1)


def ratio(found: int, total: int) -> float:
    """found / total, EMPTY for nothing of nothing."""
    return found / total if total else EMPTY
