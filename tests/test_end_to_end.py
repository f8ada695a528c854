"""The real network under the real command, in processes that are killed or given more devices."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from flax import traverse_util

from fnet_jax import checkpoint

ROOT = pathlib.Path(__file__).parent.parent
_CLOCKS = {"seconds_per_step", "images_per_second", "data_wait_share"}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """`command(workdir, *flags)`: the training command of `shapes` on its tiny build."""
    shared = tmp_path_factory.mktemp("shared")

    def build(workdir, *flags):
        return [
            *(sys.executable, "main.py", "--config", "configs/shapes.py", "--mode", "train"),
            *("--workdir", str(workdir), f"--config.dataset.data_dir={shared / 'data'}"),
            "--config.dataset.builder_config=tiny",
            "--config.train.log_every_steps=1",
            *flags,
        ]

    build.environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(shared / "compiled")}
    return build


def finish(command, environment):
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def records(workdir):
    """The losses of every step, without the clock."""
    path = pathlib.Path(workdir) / "train_log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    read = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k not in _CLOCKS} for record in read]


@pytest.mark.slow
def test_four_devices_and_four_accumulated_steps_make_the_same_update(tmp_path, command):
    # Plain SGD: an update that is linear in the gradient neither hides nor magnifies differences.
    flags = ("--config.train.max_steps=1", "--config.train.optimizer=sgd")
    devices = "--xla_force_host_platform_device_count=4"
    start = command(tmp_path / "start", *flags, "--config.train.learning_rate=0.0")
    finish([*start, "--config.train.accumulate_steps=4"], command.environment)
    finish(
        [*command(tmp_path / "accumulated", *flags), "--config.train.accumulate_steps=4"],
        command.environment,
    )
    finish(command(tmp_path / "devices", *flags), command.environment | {"XLA_FLAGS": devices})

    first, accumulated, parallel = (
        traverse_util.flatten_dict(checkpoint.restore(tmp_path / name).params)
        for name in ("start", "accumulated", "devices")
    )
    moved = 0
    for name, before in first.items():
        update = np.asarray(accumulated[name], np.float64) - before
        other = np.asarray(parallel[name], np.float64) - before
        # What is left of rounding the parameter itself, not the update, is allowed for.
        rounding = np.finfo(np.float32).eps * np.linalg.norm(before)
        assert np.linalg.norm(update - other) <= 1e-5 * np.linalg.norm(update) + rounding, name
        moved += np.linalg.norm(update) > 0
    assert moved > len(first) / 2


@pytest.mark.slow
def test_a_killed_run_repeats_the_losses_of_an_undisturbed_one(tmp_path, command):
    flags = ("--config.train.max_steps=9", "--config.train.checkpoint_every_steps=3")
    finish(command(tmp_path / "undisturbed", *flags), command.environment)

    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(killed, *flags),
        cwd=ROOT,
        env=command.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(records(killed)) < 5:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(records(killed))
    assert before < 9
    finish(command(killed, *flags), command.environment)

    expected = records(tmp_path / "undisturbed")
    assert [record["step"] for record in expected] == list(range(1, 10))
    assert records(killed) == expected
