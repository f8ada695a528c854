"""Inputs for the kernel tests: boxes on a coarse grid, where every kind of tie is common.

Coordinates are whole pixels, scores eighths and thresholds sums of few powers of two: areas, score
products and thresholds times areas are then exact in float32, and so is every decision at a tie.
"""

import hypothesis
import hypothesis.extra.numpy as npst
import numpy as np
from hypothesis import strategies as st

settings = hypothesis.settings(max_examples=30, deadline=None, derandomize=True)

thresholds = st.sampled_from([0.25, 0.375, 0.5, 0.625, 0.75])
seeds = st.integers(0, 2**32 - 1)


@st.composite
def boxes(draw, number):
    """`[number, 4]` float32; some are one pixel, some empty or inverted."""
    corner = draw(npst.arrays(np.int32, (number, 2), elements=st.integers(-2, 20)))
    size = draw(npst.arrays(np.int32, (number, 2), elements=st.integers(-3, 12)))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def scores(number):
    """`[number]` float32 in eighths, 0 to 1."""
    return npst.arrays(np.int32, number, elements=st.integers(0, 8)).map(eighths)


def eighths(numbers):
    return np.asarray(numbers, np.float32) / np.float32(8)


def masks(number):
    return npst.arrays(bool, number)


def classes(number):
    return npst.arrays(np.int32, number, elements=st.integers(1, 2))


def crowd(rng, number, places=8):
    """`[number, 4]` float32 whole-pixel boxes jittered about a few places: much suppression."""
    place = rng.integers(0, places, number)
    corner = rng.integers(0, 60, (places, 2))[place] + rng.integers(-3, 4, (number, 2))
    size = rng.integers(8, 24, (places, 2))[place] + rng.integers(-4, 5, (number, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)
