"""Times ways of doing the same work in turn, so that a busy machine slows all of them alike."""

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one way over all rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median."""
        low, high = np.percentile(self.seconds, (25, 75))
        return float((high - low) / 2 / self.median)

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.seconds, q))


def rotate(
    ways: Mapping[str, Callable[[], object]], *, rounds: int = 7, budget: float = 20.0
) -> dict[str, Timing]:
    """Runs every way once to warm up, then all of them in turn, round after round.

    Args:
      ways: name -> a call without arguments; results of JAX are waited for.
      rounds: how often; at least three rounds take place even when `budget` is spent.
      budget: seconds after which no further round starts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        jax.block_until_ready(way())
    begin = time.perf_counter()
    gc.collect()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begin > budget:
            break
        for name, way in ways.items():
            start = time.perf_counter()
            jax.block_until_ready(way())
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(slow: Timing, fast: Timing) -> float:
    """How many times faster: the median over the rounds, each measured side by side."""
    return float(np.median(np.divide(slow.seconds, fast.seconds)))
