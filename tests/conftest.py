"""Shared fixtures: where the golden arrays lie, and strict dtype promotion for every test."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest

# A float64 or a weakly typed surprise in a kernel should fail a test, not slow a GPU.
jax.config.update("jax_numpy_dtype_promotion", "strict")


def golden_dir() -> pathlib.Path:
    """The folder of golden arrays: $FNET_GOLDEN, or tests/golden."""
    return pathlib.Path(os.environ.get("FNET_GOLDEN", pathlib.Path(__file__).parent / "golden"))


@pytest.fixture(scope="session", autouse=True)
def compilation_cache_of_the_tests(tmp_path_factory):
    """Programs that tests start share what they compile, and leave the user's cache alone."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="session")
def golden():
    """`golden("nms")` loads golden/nms.npz as a dict of arrays; `.json` files load as objects."""

    def load(name: str):
        path = golden_dir() / name
        if path.suffix == ".json":
            return json.loads(path.read_text())
        with np.load(path.with_suffix(".npz")) as arrays:
            return dict(arrays)

    return load
