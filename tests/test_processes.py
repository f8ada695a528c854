"""The real program in several processes, and the batch that broke a training run again."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from fnet_jax import checkpoint
from tests.test_cli import ROOT, SHAPES, run
from tests.test_faults import free_address

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    """Flags of the tiny build of `shapes`, with few objects."""
    data = tmp_path_factory.mktemp("data")
    return (
        *SHAPES,
        f"--config.dataset.data_dir={data}",
        "--config.dataset.builder_config=tiny",
        "--config.model.subgraph_capacities=(128,)",
        "--config.test.max_objects=24",
        "--config.train.log_every_steps=1",
    )


def named(address, count, index):
    """How flags tell a process of the others."""
    flags = (
        f"--coordinator={address}",
        f"--num_processes={count}",
        f"--process_id={index}",
    )
    return flags, {}


def as_by_slurm(address, count, index):
    """How SLURM does; JAX derives the port from the number of the job."""
    first_port = 2**16 - 2**12
    environment = {
        "SLURM_JOB_ID": str(int(address.split(":")[1]) % 2**12 + first_port),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }
    return ("--cluster",), environment


def together(count, devices, *arguments, told=named):
    """Runs the program in `count` processes of some devices each; returns what each printed.

    `told`: (address, count, index) -> flags and environment that join a process with the others.
    """
    address = free_address()
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    joined = [told(address, count, index) for index in range(count)]
    processes = [
        subprocess.Popen(
            [sys.executable, "main.py", *map(str, arguments), *own_flags],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": flags} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own_flags, environment in joined
    ]
    outputs = [process.communicate(timeout=500) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [out for out, _ in outputs]


def test_two_processes_train_and_evaluate_as_one(tmp_path, common):
    # Steps so small that rounding does not change which proposals are drawn: that would show.
    steps = "--config.train.max_steps=3", "--config.train.optimizer=sgd"
    steps = *steps, "--config.train.learning_rate=1e-5"
    together(2, 1, *common, *steps, "--mode=train", f"--workdir={tmp_path / 'two'}")
    accumulated = "--config.train.accumulate_steps=2"
    one = run(*common, *steps, accumulated, "--mode=train", f"--workdir={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    totals = [
        [json.loads(line)["total"] for line in (tmp_path / name / "train_log.jsonl").open()]
        for name in ("one", "two")
    ]
    assert len(totals[0]) == 3
    np.testing.assert_allclose(*totals, rtol=1e-4)
    # The momenta are the gradients of all three steps; a flipped ReLU may move them a little.
    one, two = (
        np.concatenate([x.ravel() for _, x in sorted(checkpoint.restore(path).optimizer.items())])
        for path in (tmp_path / "one", tmp_path / "two")
    )
    assert np.linalg.norm(one - two) < 0.01 * np.linalg.norm(one)

    evaluation = *common, "--mode=eval", f"--checkpoint={tmp_path / 'one'}"
    first, second = together(2, 1, *evaluation, f"--workdir={tmp_path / 'shared'}")
    assert "SGDet" in first and "SGDet" not in second
    alone = run(*evaluation, f"--workdir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    metrics, graphs = [], []
    for name in ("shared", "alone"):
        folder = tmp_path / name / "evaluation" / "test"
        assert {path.name for path in folder.iterdir()} == {
            *("metrics.json", "graphs.jsonl", "index.html", "pictures")
        }
        found = json.loads((folder / "metrics.json").read_text())
        metrics.append({k: v for k, v in found.items() if k != "seconds_per_image"})
        graphs.append((folder / "graphs.jsonl").read_text())
    assert metrics[0] == metrics[1] and metrics[0]["images"] == 8
    assert graphs[0] == graphs[1]


def test_processes_of_a_slurm_job(tmp_path, common):
    together(
        *(2, 1, *common, "--config.train.max_steps=2", "--mode=train", f"--workdir={tmp_path}"),
        told=as_by_slurm,
    )
    records = [json.loads(line) for line in (tmp_path / "train_log.jsonl").open()]
    assert [record["step"] for record in records] == [1, 2]
    saved = checkpoint.restore_latest(tmp_path)
    assert saved.step == 2 and saved.data_states == [{"position": 4}] * 2


def test_replay(tmp_path, common):
    flags = *common, f"--workdir={tmp_path}", "--config.train.learning_rate=1e30"
    flags = *flags, "--config.train.checkpoint_every_steps=1", "--config.train.clip_norm=1e30"
    done = run(*flags, "--mode=train", "--config.train.max_steps=20")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    error = done.stderr.strip().splitlines()[-1]
    (path,) = (tmp_path / "bad_batches").glob("*.npz")
    assert str(path) in error and "--mode replay" in error
    image = re.search(r"image (\d+) \((\S+)\)", error)
    done = run(*flags, "--mode=replay")
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout
    (line,) = [t for t in done.stdout.splitlines() if t.startswith(f"image {image[1]} ")]
    assert image[2] in line and "total" in line
    assert "nan" in line or "inf" in line or "gradients not finite" in done.stdout
