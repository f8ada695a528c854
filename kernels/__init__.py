"""The numerical kernels of F-Net: jitted, static shapes with masks, vmap-able."""

from fnet_jax.kernels.boxes import (
    DELTA_STD,
    area,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    intersection_and_union,
    iou,
    pairwise_iou,
    sides,
    union_boxes,
)
from fnet_jax.kernels.clustering import PairClusters, cluster_pairs
from fnet_jax.kernels.convolution import convolve
from fnet_jax.kernels.nms import Kept, class_aware_nms, nms, triplet_nms
from fnet_jax.kernels.roi_align import roi_align
from fnet_jax.kernels.trigonometry import sincos

__all__ = [
    "DELTA_STD",
    "Kept",
    "PairClusters",
    "area",
    "class_aware_nms",
    "clip_boxes",
    "cluster_pairs",
    "convolve",
    "decode_boxes",
    "encode_boxes",
    "intersection_and_union",
    "iou",
    "nms",
    "pairwise_iou",
    "roi_align",
    "sides",
    "sincos",
    "triplet_nms",
    "union_boxes",
]
