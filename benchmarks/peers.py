"""The same work by others: torchvision's C++ operators and torch's VGG16 (extra `bench`)."""

import functools

import numpy as np

from fnet_jax.backbone import BLOCKS
from fnet_jax.detect import ProposalOptions
from fnet_jax.kernels import DELTA_STD

try:
    import torch
    import torchvision
except ImportError:  # The peers are optional: without them a table shows our times alone.
    torch = torchvision = None

AVAILABLE = torch is not None


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, kept: int):
    """A call of torchvision's NMS; it has no limit of its own, so it is cut afterwards."""
    # torchvision measures plain x2 - x1: one more on the far side gives the inclusive areas.
    shifted = torch.from_numpy(boxes + np.array([0, 0, 1, 1], np.float32))
    scores = torch.from_numpy(scores)
    return lambda: torchvision.ops.nms(shifted, scores, iou_threshold)[:kept]


def propose(
    foreground: np.ndarray,
    deltas: np.ndarray,
    anchors: np.ndarray,
    image: tuple[int, int],
    options: ProposalOptions,
):
    """A call that makes proposals of anchors `[N, 4]` in an image of (height, width) pixels.

    Args:
      foreground, deltas: `[N]` and `[N, 4]` float32.
    """
    foreground, deltas, anchors = map(torch.from_numpy, (foreground, deltas, anchors))
    std = torch.tensor(DELTA_STD)
    last = torch.tensor([image[1], image[0]] * 2) - 1.0
    far_side = torch.tensor([0.0, 0.0, 1.0, 1.0])  # as in `nms`

    def run():
        moves = deltas * std
        sides = anchors[:, 2:] - anchors[:, :2] + 1
        centre = anchors[:, :2] + sides / 2 + moves[:, :2] * sides
        half = sides * torch.exp(moves[:, 2:]) / 2
        boxes = torch.cat([centre - half, centre + half - 1], dim=1)
        boxes = torch.minimum(boxes.clamp(min=0), last)
        valid = (boxes[:, 2:] - boxes[:, :2] + 1 >= options.min_size).all(dim=1)
        scores, order = torch.topk(torch.where(valid, foreground, -1.0), options.pre_nms)
        boxes = boxes[order]
        kept = torchvision.ops.nms(boxes + far_side, scores, options.nms_threshold)
        return boxes[kept[: options.post_nms]]

    return run


def roi_align(features: np.ndarray, rois: np.ndarray, pool_size: int):
    """Calls of torchvision's ROI-align: (forward, forward and backward)."""
    maps = torch.from_numpy(features).permute(2, 0, 1)[None].contiguous().requires_grad_()
    rois = torch.cat([torch.zeros(len(rois), 1), torch.from_numpy(rois)], dim=1)
    pool = functools.partial(
        torchvision.ops.roi_align,
        boxes=rois,
        output_size=pool_size,
        spatial_scale=1 / 16,
        sampling_ratio=-1,
        aligned=False,
    )

    def forward():
        with torch.no_grad():
            return pool(maps)

    def both():
        maps.grad = None
        pool(maps).sum().backward()
        return maps.grad

    return forward, both


def vgg16(image: np.ndarray, kernels: list[np.ndarray], frozen: int):
    """Calls of VGG16's convolutions in channels-last layout: (forward, forward and backward).

    Args:
      image: `[H, W, 3]` float32.
      kernels: thirteen `[3, 3, C, D]` float32.
      frozen: leading convolutions without a gradient.
    """
    layers, number = [], 0
    for block, repeats in enumerate(BLOCKS):
        if block:
            layers.append(torch.nn.MaxPool2d(2))
        for _ in range(repeats):
            kernel = torch.from_numpy(kernels[number]).permute(3, 2, 0, 1)
            layer = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
            layer.weight.data.copy_(kernel)
            layer.bias.data.zero_()
            layer.requires_grad_(number >= frozen)
            layers += [layer, torch.nn.ReLU(inplace=True)]
            number += 1
    network = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)

    def forward():
        with torch.no_grad():
            return network(x)

    def both():
        network.zero_grad()
        network(x).sum().backward()

    return forward, both
