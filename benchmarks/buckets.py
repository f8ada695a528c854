"""Which padded sizes waste least: python -m benchmarks.buckets --config configs/vrd.py --data DIR

An image is computed at the size of its bucket, so padding costs time in proportion to its area;
each bucket costs a compilation. This shows what the config's own buckets waste on the sizes of a
built dataset, at training and at test scales, and what the best few would.
"""

import argparse
import runpy

import numpy as np

from fnet_jax import image_ops
from fnet_jax.datasets import load_builder
from fnet_jax.datasets.split import Split

_GRID = 25  # pixels: sides of candidate buckets are multiples


def resized_sizes(config, sizes: np.ndarray, scales) -> np.ndarray:
    """(scales * images, 2) heights and widths that the network is shown."""
    rows = []
    for scale in scales:
        factor = image_ops.resize_factor(sizes, float(scale), config.image.max_size)
        rows.append(image_ops.resized_size(sizes, factor))
    return np.concatenate(rows)


def padded_areas(sizes: np.ndarray, buckets) -> np.ndarray:
    """(n,) pixels of the smallest bucket that holds each size; infinite where none does."""
    areas = np.full(len(sizes), np.inf)
    for height, width in buckets:
        holds = (sizes[:, 0] <= height) & (sizes[:, 1] <= width)
        areas = np.where(holds, np.minimum(areas, height * width), areas)
    return areas


def waste(sizes: np.ndarray, buckets) -> float:
    """Padded over true area, less one."""
    return float(padded_areas(sizes, buckets).sum() / np.prod(sizes, axis=1).sum() - 1)


def choose(sizes: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Greedily: the bucket that holds everything, then whichever saves most, one at a time."""
    rounded = -(-sizes // _GRID) * _GRID
    chosen = [tuple(map(int, rounded.max(axis=0)))]
    candidates = {tuple(map(int, row)) for row in np.unique(rounded, axis=0)}
    heights, widths = (sorted({c[side] for c in candidates}) for side in (0, 1))
    grid = [(h, w) for h in heights for w in widths]
    areas = padded_areas(sizes, chosen)
    while len(chosen) < count:
        savings = []
        for height, width in grid:
            holds = (sizes[:, 0] <= height) & (sizes[:, 1] <= width)
            savings.append(np.maximum(areas[holds] - height * width, 0).sum())
        chosen.append(grid[int(np.argmax(savings))])
        areas = padded_areas(sizes, chosen)
    return sorted(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.buckets", description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--data", required=True, help="data_dir of the built dataset")
    arguments = parser.parse_args()
    config = runpy.run_path(arguments.config)["get_config"]()
    name, options = config.dataset.name, config.dataset.builder_config
    dataset = load_builder(name, options, arguments.data, "", False)
    for what, split, scales in (
        ("training", config.dataset.train_split, config.image.train_scales),
        ("test", config.dataset.eval_split, (config.image.test_scale,)),
    ):
        sizes = resized_sizes(config, Split(dataset, split).sizes, scales)
        own = [tuple(bucket) for bucket in config.image.buckets]
        print(f"{what}: the config's {len(own)} buckets waste {waste(sizes, own):.1%}")
        for count in (1, 2, 4, 6, 8, 10, 12):
            best = choose(sizes, count)
            print(f"  {count:2d} buckets {waste(sizes, best):6.1%}  {best}")


if __name__ == "__main__":
    main()
