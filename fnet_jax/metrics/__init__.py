"""Metrics over a split: small states that take one image at a time, merge, and compute at the end.

All boxes are `(x1, y1, x2, y2)` pixels of the original image, inclusive ("+1"). Everything here is
NumPy on the host: sizes vary from image to image, and float64 decides the borderline overlaps as
the original did.

Recall of relationships exists in two protocols, `FNetRecall` and `SGBRecall`, which differ in
almost everything. A number without the name of its protocol cannot be compared with others.
"""

from fnet_jax.metrics.arithmetic import EMPTY, overlaps
from fnet_jax.metrics.detection import DetectionAP, PrecisionRecall, ProposalRecall
from fnet_jax.metrics.fnet import FNetRecall, ImageHits, Triplets, last_annotations
from fnet_jax.metrics.sgb import TASKS, RankedPairs, SGBRecall, TrainingStatistics

__all__ = [
    "EMPTY",
    "TASKS",
    "DetectionAP",
    "FNetRecall",
    "ImageHits",
    "PrecisionRecall",
    "ProposalRecall",
    "RankedPairs",
    "SGBRecall",
    "TrainingStatistics",
    "Triplets",
    "last_annotations",
    "overlaps",
]
