"""The kernels again in NumPy: slow, obvious, float64. They define what the fast ones compute.

Results have the natural, data-dependent sizes: no padding and no masks on the way out.
"""

import math

import numpy as np

DELTA_STD = np.array([0.1, 0.1, 0.2, 0.2])


def area(box) -> float:
    """Inclusive area of one box; 0 if it is empty or inverted."""
    x1, y1, x2, y2 = map(float, box)
    return max(x2 - x1 + 1, 0.0) * max(y2 - y1 + 1, 0.0)


def iou(a, b) -> float:
    """Intersection over union of two boxes; 0 if both are empty."""
    corners = [max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]
    intersection = area(corners)
    union = area(a) + area(b) - intersection
    return intersection / union if union > 0 else 0.0


def pairwise_iou(a, b) -> np.ndarray:
    """IoU matrix `[N, M]`."""
    return np.array([[iou(first, second) for second in b] for first in a]).reshape(len(a), len(b))


def union_boxes(a, b) -> np.ndarray:
    """Smallest box around two boxes."""
    return np.array([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])


def encode_boxes(boxes, targets) -> np.ndarray:
    """Normalised deltas `[N, 4]` from `boxes` to `targets`."""
    boxes, targets = np.float64(boxes), np.float64(targets)
    size = boxes[:, 2:] - boxes[:, :2] + 1
    target_size = targets[:, 2:] - targets[:, :2] + 1
    shift = (targets[:, :2] + target_size / 2) - (boxes[:, :2] + size / 2)
    return np.hstack([shift / size, np.log(target_size / size)]) / DELTA_STD


def decode_boxes(boxes, deltas) -> np.ndarray:
    """Boxes `[N, 4]` moved by normalised deltas."""
    boxes, deltas = np.float64(boxes), np.float64(deltas) * DELTA_STD
    size = boxes[:, 2:] - boxes[:, :2] + 1
    centre = boxes[:, :2] + size / 2 + deltas[:, :2] * size
    half = size * np.exp(deltas[:, 2:]) / 2
    return np.hstack([centre - half, centre + half - 1])


def clip_boxes(boxes, height, width) -> np.ndarray:
    """Boxes `[N, 4]` clipped to the pixels of an image."""
    return np.clip(boxes, 0, np.array([width - 1, height - 1, width - 1, height - 1]))


def rank(scores, mask=None) -> list[int]:
    """Indices by descending score, equal scores by lowest index, masked ones left out."""
    valid = range(len(scores)) if mask is None else np.flatnonzero(mask)
    return sorted(map(int, valid), key=lambda i: (-scores[i], i))


def greedy(order, suppresses, max_output) -> list[int]:
    """Walk candidates in rank order; keep one unless a kept one suppresses it."""
    kept = []
    for candidate in order:
        if not any(suppresses(keeper, candidate) for keeper in kept):
            kept.append(candidate)
    return kept[:max_output]


def nms(boxes, scores, iou_threshold, max_output, *, mask=None) -> list[int]:
    """Kept indices, best first."""

    def suppresses(i, j):
        return iou(boxes[i], boxes[j]) > iou_threshold

    return greedy(rank(scores, mask), suppresses, max_output)


def class_aware_nms(boxes, scores, classes, iou_threshold, max_output, *, mask=None) -> list[int]:
    """Kept indices, best first; only equal classes suppress."""

    def suppresses(i, j):
        return classes[i] == classes[j] and iou(boxes[i], boxes[j]) > iou_threshold

    return greedy(rank(scores, mask), suppresses, max_output)


def triplet_nms(
    subject_boxes,
    object_boxes,
    subject_classes,
    predicates,
    object_classes,
    iou_threshold,
    max_output,
    *,
    mask=None,
) -> list[int]:
    """Kept positions of triplets given in rank order."""
    names = list(zip(subject_classes, predicates, object_classes, strict=True))

    def suppresses(i, j):
        return (
            names[i] == names[j]
            and iou(subject_boxes[i], subject_boxes[j]) > iou_threshold
            and iou(object_boxes[i], object_boxes[j]) > iou_threshold
        )

    order = range(len(names)) if mask is None else map(int, np.flatnonzero(mask))
    return greedy(order, suppresses, max_output)


def cluster_pairs(boxes, scores, iou_threshold, capacity, *, mask=None):
    """Cluster all ordered pairs of valid objects.

    Returns:
      (cluster boxes `[count, 4]`, pair_cluster `[R, R]`, incidence `[count, R]`, overflow).
    """
    number = len(boxes)
    valid = np.ones(number, bool) if mask is None else mask
    pairs = [(i, j) for i in range(number) for j in range(number) if valid[i] and valid[j]]
    # `sorted` is stable: equal scores keep the order of the pair index.
    left = sorted(pairs, key=lambda pair: -(np.float32(scores[pair[0]]) * scores[pair[1]]))
    box = {(i, j): union_boxes(boxes[i], boxes[j]) for i, j in pairs}
    absorbed_by = {}
    while left and len(absorbed_by) < capacity:
        keeper = left[0]
        absorbed_by[keeper] = [
            pair for pair in left if pair == keeper or iou(box[keeper], box[pair]) >= iou_threshold
        ]
        # A pair and its mirror are one union box, even an empty one that overlaps nothing.
        mirror = keeper[::-1]
        if mirror not in absorbed_by[keeper]:
            absorbed_by[keeper].append(mirror)
        left = [pair for pair in left if pair not in absorbed_by[keeper]]

    pair_cluster = np.full((number, number), -1)
    incidence = np.zeros((len(absorbed_by), number), bool)
    keepers = sorted(absorbed_by)
    for cluster, keeper in enumerate(keepers):
        for i, j in absorbed_by[keeper]:
            pair_cluster[i, j] = cluster
            incidence[cluster, [i, j]] = True
    cluster_boxes = np.array([box[keeper] for keeper in keepers]).reshape(-1, 4)
    return cluster_boxes, pair_cluster, incidence, len(left)


def roi_align(features, rois, *, pool_size, spatial_scale) -> np.ndarray:
    """`[N, P, P, C]`: the mean over every bin's samples, one sample after the other."""
    result = np.zeros((len(rois), pool_size, pool_size, features.shape[-1]))
    for n, roi in enumerate(np.float64(rois) * spatial_scale):
        bin_width = max(roi[2] - roi[0], 1.0) / pool_size
        bin_height = max(roi[3] - roi[1], 1.0) / pool_size
        columns, rows = math.ceil(bin_width), math.ceil(bin_height)
        for p in range(pool_size):
            for q in range(pool_size):
                for row in range(rows):
                    for column in range(columns):
                        y = roi[1] + (p + (row + 0.5) / rows) * bin_height
                        x = roi[0] + (q + (column + 0.5) / columns) * bin_width
                        result[n, p, q] += bilinear(features, y, x)
        result[n] /= rows * columns
    return result


def bilinear(features, y, x) -> np.ndarray:
    """Value `[C]` of a map at a point: 0 over a cell outside, else of the nearest point in it."""
    height, width = features.shape[:2]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(features.shape[-1])
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    low, high = y - top, x - left
    upper = (1 - high) * features[top, left] + high * features[top, right]
    lower = (1 - high) * features[bottom, left] + high * features[bottom, right]
    return (1 - low) * upper + low * lower


def convolve(x, kernel) -> np.ndarray:
    """`[N, H, W, D]`: 3x3 windows over a border of zeros, one place after the other."""
    count, height, width, _ = x.shape
    padded = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    result = np.zeros((count, height, width, kernel.shape[-1]))
    for row in range(height):
        for column in range(width):
            window = padded[:, row : row + 3, column : column + 3]
            result[:, row, column] = np.einsum("nijc,ijcd->nd", window, np.float64(kernel))
    return result
