"""A toy model under the real training loop; run as a process it can be killed, or given devices.

`python -m tests.train_process WORKDIR '{"epochs": 3, ...}'` trains and writes the final parameters
to WORKDIR/params.npz. The options are the arguments of `run`.
"""

import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fnet_jax import multihost, train
from fnet_jax.configs import base

VGG = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
NUM_IMAGES = 10
WIDTH = 4


def toy_params() -> dict:
    """Small dense layers under the model's top-level names."""
    rng = np.random.default_rng(0)

    def layer():
        return {
            "kernel": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32),
            "bias": rng.normal(size=WIDTH).astype(np.float32),
        }

    return {
        "backbone": {name: layer() for name in VGG},
        "rpn": {"conv": layer()},
        "message_passing_0": {"key": layer()},
        "predicate_score": layer(),
    }


def toy_loss(params, example, key, phase):
    """Two terms; noise from the key, as sampling does. `poison` breaks the predicate term."""

    def dense(x, layer):
        return jnp.tanh(x @ layer["kernel"] + layer["bias"])

    x = example["image"][:WIDTH]
    for name in VGG:
        x = x + 0.3 * dense(x, params["backbone"][name])
    x = x + 0.1 * jax.random.normal(key, (WIDTH,))
    terms = {}
    if phase.rpn_loss:
        terms["rpn"] = jnp.sum((dense(x, params["rpn"]["conv"]) - example["target"]) ** 2)
    if phase.graph_loss:
        y = x + dense(x, params["message_passing_0"]["key"])
        y = dense(y, params["predicate_score"]) * example["poison"]
        terms["predicate"] = jnp.sum((y - example["target"]) ** 2)
        # A finite loss, but its gradient is NaN where the image asks for it.
        terms["predicate"] += jnp.sqrt(jnp.where(example["bad_slope"], jnp.sum(y) * 0.0, 1.0))
    return sum(terms.values()), terms


class ToyBatches:
    """Endless shuffled batches of one image per device, padded to one of `widths`."""

    def __init__(
        self, batch_size, *, seconds=0.0, widths=1, poisoned=None, bad_slope=None, hook=None
    ):
        self._size, self._seconds, self._widths, self._hook = batch_size, seconds, widths, hook
        self._poisoned, self._bad_slope = poisoned, bad_slope
        self._position = 0

    def __next__(self):
        time.sleep(self._seconds)
        if self._hook is not None:
            self._hook(self._position)
        # The images of a step are dealt out to the processes in order.
        first = self._position + jax.process_index() * self._size
        places = np.arange(first, first + self._size)
        self._position += self._size * jax.process_count()
        order = [np.random.default_rng(p // NUM_IMAGES).permutation(NUM_IMAGES) for p in places]
        index = np.array([o[p % NUM_IMAGES] for o, p in zip(order, places, strict=True)], np.int32)
        image = np.stack([np.random.default_rng(100 + i).normal(size=WIDTH) for i in index])
        padding = WIDTH * (1 + self._position % self._widths)
        return {
            "image": np.pad(image, ((0, 0), (0, padding))).astype(np.float32),
            "target": np.stack([np.sin(i + np.arange(WIDTH)) for i in index]).astype(np.float32),
            "image_index": index,
            "poison": np.where(index == self._poisoned, np.nan, 1).astype(np.float32),
            "bad_slope": index == self._bad_slope,
        }

    def get_state(self):
        return {"position": self._position}

    def set_state(self, state):
        self._position = state["position"]


def toy_config(**changes):
    """config.train of the project, with small numbers."""
    config = base.get_config().train
    small = {
        "stage": "from_rpn",
        "epochs": 2,
        "lr_decay_epochs": 2,
        "log_every_steps": 1,
        "eval_every_epochs": 1,
    }
    with config.unlocked():
        config.update(small | changes)
    return config


def run(workdir, *, fit_options=None, batch_options=None, **changes):
    """Trains the toy model; `changes` are fields of config.train."""
    batches = ToyBatches(jax.local_device_count(), **(batch_options or {}))
    options = {
        "loss_fn": toy_loss,
        "params": toy_params(),
        "batches": batches,
        "num_images": NUM_IMAGES,
        "config": toy_config(**changes),
        "workdir": str(workdir),
        "seed": 3,
        "image_name": lambda i: f"photo{i}.jpg",
    }
    return train.fit(**(options | (fit_options or {})))


def flat(params) -> dict[str, np.ndarray]:
    """Parameters by path, on the host."""
    return jax.tree.map(np.asarray, traverse_util.flatten_dict(params, sep="/"))


if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    if "distributed" in options:  # (coordinator address, number of processes, index of this one)
        multihost.join(*options.pop("distributed"))
    result = run(sys.argv[1], **options)
    name = f"params{jax.process_index() or ''}.npz"
    np.savez(pathlib.Path(sys.argv[1]) / name, **flat(result.params))
