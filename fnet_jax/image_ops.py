"""Decoding, resizing and padding of images on the host, with OpenCV."""

from collections.abc import Sequence

import cv2
import numpy as np


def decode(encoded: bytes, color_order: str) -> np.ndarray | None:
    """Decodes an image file.

    Args:
      encoded: the file's bytes.
      color_order: "bgr" or "rgb".

    Returns:
      (h, w, 3) uint8, or None if the bytes are no image.
    """
    if not encoded:
        return None
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    if image is None or color_order == "bgr":
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resize_factor(sizes: np.ndarray, target: np.ndarray | float, max_size: int) -> np.ndarray:
    """The factor that brings the short side to `target`, or the long side to `max_size` if less.

    Args:
      sizes: (..., 2) original heights and widths.
      target: (...) wanted short sides, in pixels.
      max_size: the long side's limit, in pixels; it is compared with the rounded long side.

    Returns:
      (...) float64.
    """
    sizes = np.asarray(sizes, np.float64)
    short, long = sizes.min(axis=-1), sizes.max(axis=-1)
    factor = target / short
    return np.where(np.rint(factor * long) > max_size, max_size / long, factor)


def resized_size(sizes: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The (..., 2) int64 heights and widths that `resize` gives, at least one pixel each."""
    scaled = np.asarray(sizes, np.float64) * np.asarray(factor)[..., None]
    # OpenCV rounds half to even, as rint does.
    return np.maximum(np.rint(scaled).astype(np.int64), 1)


def resize(image: np.ndarray, factor: float) -> np.ndarray:
    """Bilinear resizing of (h, w, 3) uint8 by a factor, which OpenCV also samples with."""
    height, width = resized_size(image.shape[:2], np.float64(factor))
    if min(image.shape[:2]) * factor <= 0.5:
        # By factor, OpenCV would round so thin an image to nothing.
        return cv2.resize(image, (int(width), int(height)), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)


def smallest_bucket(
    buckets: Sequence[tuple[int, int]], height: int, width: int
) -> tuple[int, int] | None:
    """The (height, width) of least area, the first of equals, that holds an image; None if none."""
    fitting = [bucket for bucket in buckets if bucket[0] >= height and bucket[1] >= width]
    return min(fitting, key=lambda bucket: bucket[0] * bucket[1], default=None)


def pad(image: np.ndarray, bucket: tuple[int, int]) -> np.ndarray:
    """The (h, w, 3) image in the top left corner of zeros of the bucket's size."""
    padded = np.zeros((*bucket, 3), image.dtype)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded
