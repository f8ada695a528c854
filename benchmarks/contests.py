"""What is measured, and the table and the JSON that come of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.timing import Timing, ratio, rotate

OURS = "ours"


@dataclasses.dataclass(frozen=True)
class Contest:
    """One piece of work, done by us and by others.

    Attributes:
      name: what the work is, with its sizes.
      ways: name -> call without arguments; "ours" among them.
      goal: how many times faster than the first peer we mean to be, if that was stated.
      multiply_adds: of the work as we do it, if that is mostly matrix products.
      images: whole images in it, whose latency users wait for.
    """

    name: str
    ways: Mapping[str, Callable[[], Any]]
    goal: float | None = None
    multiply_adds: float | None = None
    images: int | None = None

    def measure(self) -> dict[str, Any]:
        """Runs all ways in turn; a row of the table."""
        timings = rotate(self.ways)
        ours = timings[OURS]
        row = {
            "name": self.name,
            "ms": {name: _ms(timing) for name, timing in timings.items()},
            "spread": {name: round(timing.spread, 3) for name, timing in timings.items()},
            "ratio": {
                name: round(ratio(timing, ours), 2)
                for name, timing in timings.items()
                if name != OURS
            },
        }
        if self.goal is not None:
            row["goal"] = self.goal
        if self.multiply_adds is not None:
            row["gmac_per_second"] = round(self.multiply_adds / ours.median / 1e9, 1)
        if self.images is not None:
            row["p95_ms"] = round(1e3 * ours.percentile(95), 1)
            row["images_per_second"] = round(self.images / ours.median, 2)
        return row


def _ms(timing: Timing) -> float:
    return round(1e3 * timing.median, 3)


def line(row: Mapping[str, Any]) -> str:
    """A row as text."""
    parts = [f"{row['name']:<58} {row['ms'][OURS]:>10.2f} ms ±{row['spread'][OURS]:.0%}"]
    for name, times in row["ratio"].items():
        parts.append(f"{name} {row['ms'][name]:.2f} ms = {times:g}x")
    if "goal" in row:
        parts.append(f"goal {row['goal']:g}x")
    if "gmac_per_second" in row:
        parts.append(f"{row['gmac_per_second']:g} GMAC/s")
    if "p95_ms" in row:
        parts.append(f"p95 {row['p95_ms']:.0f} ms, {row['images_per_second']:g} images/s")
    return "  ".join(parts)
