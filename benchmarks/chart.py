"""Draws where the time of image -> graph goes.

python -m benchmarks.chart benchmarks.json docs/performance.png
"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(rows: list[dict], yardstick: float, path: str) -> None:
    """Bars of milliseconds by stage, with the share of the matrix product's rate where known.

    Args:
      rows: of the group "stages".
      yardstick: GMAC/s of a plain matrix product.
      path: of the picture.
    """
    times = [row["ms"]["ours"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    bars = axes.barh(range(len(rows)), times, color="#4477aa")
    labels = []
    for row, milliseconds in zip(rows, times, strict=True):
        share = row.get("gmac_per_second")
        labels.append(
            f"{milliseconds:.0f} ms" + (f", {share / yardstick:.0%} of the rate" if share else "")
        )
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(right=1.45 * max(times))
    axes.set_xlabel("milliseconds")
    axes.set_title(f"Image -> graph, 600 x 800, untrained: {sum(times) / 1e3:.2f} s in all stages")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main(source: str, path: str) -> None:
    with open(source) as file:
        rows = json.load(file)["rows"]
    draw(rows["stages"], rows["matrix_product"][0]["gmac_per_second"], path)


if __name__ == "__main__":
    main(*sys.argv[1:])
