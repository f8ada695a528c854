"""Decoding, resizing and padding of images: what a worker process does for each."""

from collections.abc import Iterator

import cv2
import numpy as np

from benchmarks import inputs, models
from benchmarks.contests import OURS, Contest
from fnet_jax import image_ops

_PHOTO = (768, 1024)  # height and width of most VRD photos


def input_pipeline() -> Iterator[Contest]:
    """One photo of 768 x 1024 pixels, JPEG of usual quality, to a padded 600 x 800 image."""
    image = cv2.resize(models.example()["image"], _PHOTO[::-1], interpolation=cv2.INTER_CUBIC)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    factor = float(image_ops.resize_factor(np.array(_PHOTO), 600.0, 1000))
    decoded = image_ops.decode(encoded, "bgr")

    def whole():
        resized = image_ops.resize(image_ops.decode(encoded, "bgr"), factor)
        return image_ops.pad(resized, inputs.IMAGE)

    ways = {
        OURS: whole,
        "decoding alone": lambda: image_ops.decode(encoded, "bgr"),
        "resizing alone": lambda: image_ops.resize(decoded, factor),
    }
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # Per core: in training each worker process has one.
    yield Contest(f"decode, resize, pad one photo ({len(encoded) // 1024} KB JPEG)", ways, images=1)
    cv2.setNumThreads(threads)
