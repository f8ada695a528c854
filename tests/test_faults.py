"""Training that is stopped, killed, damaged and joined: real processes, real files."""

import json
import os
import random
import signal
import socket
import time

import numpy as np
import pytest

from fnet_jax import bad_batch, checkpoint
from fnet_jax.errors import UserError
from fnet_jax.train_step import NonFiniteLossError
from tests.test_train import (
    assert_same_params,
    finish,
    records,
    start,
    step_of,
    unfinished,
    wait_for,
)
from tests.train_process import run


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    """Half of them inside a save. The end is bit-identical, no image is lost or repeated."""
    options = {"epochs": 40, "log_every_steps": 1, "checkpoint_every_steps": 3}
    finish(start(tmp_path / "whole", **options))
    workdir = tmp_path / "killed"
    log = workdir / "train_log.jsonl"
    latest = workdir / "checkpoints" / "latest"
    moment = random.Random(0)
    inside = 0
    for kill in range(20):
        process = start(workdir, batch_options={"seconds": 0.01}, **options)
        before = step_of(latest) if latest.exists() else 0
        wait_for(lambda: log.exists() and latest.exists() and step_of(latest) > before, process)  # noqa: B023
        if kill % 2:
            wait_for(lambda: unfinished(latest), process)
            inside += unfinished(latest)
        else:
            time.sleep(moment.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert step_of(latest) >= before
    assert inside > 5
    finish(start(workdir, **options))
    assert records(workdir) == records(tmp_path / "whole")
    with np.load(workdir / "params.npz") as a, np.load(tmp_path / "whole" / "params.npz") as b:
        assert_same_params(dict(a), dict(b))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, number):
    hook = lambda position: position == 8 and os.kill(os.getpid(), number)  # noqa: E731
    before = signal.getsignal(number)
    stopped = run(tmp_path, batch_options={"hook": hook})
    assert stopped.interrupted and stopped.step == 9
    assert checkpoint.restore_latest(tmp_path).step == 9
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_wait(tmp_path):
    def hook(position):
        if position == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, batch_options={"hook": hook}, checkpoint_every_steps=2)
    assert checkpoint.restore_latest(tmp_path).step == 8


def test_images_that_stop_coming_after_a_signal(tmp_path):
    """Ctrl-C also ends the processes that load images: the step is given up, nothing else."""

    def hook(position):
        if position == 8:
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("a worker was interrupted")

    stopped = run(tmp_path / "stopped", batch_options={"hook": hook})
    assert stopped.interrupted and stopped.step == 8
    resumed, whole = run(tmp_path / "stopped"), run(tmp_path / "whole")
    assert_same_params(resumed.params, whole.params)
    assert records(tmp_path / "stopped") == records(tmp_path / "whole")


def test_images_that_stop_coming_without_a_signal_are_an_error(tmp_path):
    def hook(position):
        if position == 8:
            raise RuntimeError("a worker died")

    with pytest.raises(RuntimeError, match="a worker died"):
        run(tmp_path, batch_options={"hook": hook})


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, capsys):
    run(tmp_path / "parts", checkpoint_every_steps=4, max_steps=12)
    newest = tmp_path / "parts" / "checkpoints" / "latest" / "12"
    for file in (newest / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    resumed = run(tmp_path / "parts", checkpoint_every_steps=4)
    assert f"{newest} cannot be read" in capsys.readouterr().err
    whole = run(tmp_path / "whole", checkpoint_every_steps=4)
    assert_same_params(resumed.params, whole.params)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def poisoned_image(place: int) -> int:
    return int(np.random.default_rng(0).permutation(10)[place])


def test_the_batch_that_was_not_finite_is_kept(tmp_path):
    index = poisoned_image(5)
    with pytest.raises(NonFiniteLossError, match="--mode replay") as caught:
        run(tmp_path, batch_options={"poisoned": index}, accumulate_steps=2)
    path = bad_batch.newest(tmp_path)
    assert str(path) in str(caught.value)
    bad = bad_batch.read(path)
    assert (bad.step, bad.epoch, bad.process_index) == (3, 0, 0)
    assert f"predicate = nan for image {index}" in bad.cause
    images = [(int(example["image_index"]), place) for example, place in bad.places()]
    order = np.random.default_rng(0).permutation(10)
    assert images == [(int(order[4]), 0), (int(order[5]), 1)]
    assert np.isnan(bad.batches[1]["poison"][0]) and bad.batches[0]["poison"][0] == 1


def test_skipping(tmp_path):
    """The bad step leaves the weights as they are; it is counted, and its batch is kept."""
    index = poisoned_image(5)
    options = {"checkpoint_every_steps": 1, "non_finite": "skip", "log_every_steps": 4}
    run(tmp_path, batch_options={"poisoned": index}, keep_checkpoints=20, epochs=1, **options)
    folder = tmp_path / "checkpoints" / "latest"
    before, after = (checkpoint.restore(folder / str(step)) for step in (5, 6))
    assert_same_params(before.params, after.params)
    for name, value in before.optimizer.items():
        np.testing.assert_array_equal(value, after.optimizer[name])
    moved = checkpoint.restore(folder / "7")
    assert np.isfinite(moved.params["predicate_score"]["bias"]).all()
    assert (
        moved.params["predicate_score"]["bias"] != after.params["predicate_score"]["bias"]
    ).any()
    lines = records(tmp_path)
    assert [line.get("skipped_steps") for line in lines] == [None, 1, None]
    assert all(np.isfinite(line["total"]) for line in lines)
    assert bad_batch.read(bad_batch.newest(tmp_path)).step == 6


def test_skipping_has_an_end(tmp_path):
    """Weights that are broken themselves never become finite again."""
    from tests.train_process import toy_params

    params = toy_params()
    params["predicate_score"]["bias"][:] = np.nan
    options = {"fit_options": {"params": params}, "non_finite": "skip", "epochs": 5}
    with pytest.raises(NonFiniteLossError, match="Step 21"):
        run(tmp_path, **options)
    assert len(list((tmp_path / bad_batch.FOLDER).glob("*.npz"))) == 20


@pytest.mark.parametrize("content", [b"", b"junk", None], ids=["empty", "junk", "another npz"])
def test_a_file_that_is_no_bad_batch(tmp_path, content):
    path = tmp_path / "step_1.npz"
    if content is None:
        np.savez(path, facts=np.array(json.dumps({"step": 1})), a=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="no batch of a training run"):
        bad_batch.read(path)
    with pytest.raises(UserError, match="no step of this run"):
        bad_batch.newest(tmp_path)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


@pytest.mark.slow
def test_any_division_into_processes_is_the_same_run(tmp_path):
    """1 x 4, 2 x 2 and 4 x 1 processes x devices, each going on where the one before stopped."""
    whole = run(tmp_path / "whole", accumulate_steps=4, epochs=4)
    for stop, count in ((4, 1), (8, 2), (None, 4)):
        address = free_address()
        processes = [
            start(
                tmp_path / "parts",
                devices=4 // count,
                epochs=4,
                max_steps=stop,
                **({"distributed": [address, count, i]} if count > 1 else {}),
            )
            for i in range(count)
        ]
        for process in processes:
            finish(process)
    with np.load(tmp_path / "parts" / "params.npz") as parts:
        assert_same_params(dict(parts), whole.params, rtol=1e-5, atol=1e-6)
    totals = [[r["total"] for r in records(tmp_path / d)] for d in ("parts", "whole")]
    np.testing.assert_allclose(*totals, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all(tmp_path, number):
    """At the same step, saved; the same commands go on."""
    options = {"epochs": 30, "checkpoint_every_steps": 1000}

    def begin(**batch_options):
        address = free_address()
        return [
            start(
                tmp_path / "two",
                distributed=[address, 2, i],
                batch_options=batch_options,
                **options,
            )
            for i in range(2)
        ]

    processes = begin(seconds=0.05)
    log = tmp_path / "two" / "train_log.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= 5, processes[0])
    processes[1].send_signal(number)
    for process in processes:
        finish(process)
    stopped = checkpoint.restore_latest(tmp_path / "two").step
    assert 5 <= stopped < 100
    for process in begin():
        finish(process)
    whole = run(tmp_path / "whole", accumulate_steps=2, **options)
    with np.load(tmp_path / "two" / "params.npz") as two:
        assert_same_params(dict(two), whole.params, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_death_of_a_process_ends_the_others(tmp_path):
    """Within the heartbeat timeout and a little more; the same command goes on."""
    options = {"epochs": 30, "checkpoint_every_steps": 5}

    def begin(seconds):
        address = free_address()
        return [
            start(
                tmp_path / "two",
                devices=2,
                distributed=[address, 2, i],
                batch_options={"seconds": seconds},
                **options,
            )
            for i in range(2)
        ]

    first, second = begin(0.05)
    latest = tmp_path / "two" / "checkpoints" / "latest"
    wait_for(lambda: latest.exists() and step_of(latest) >= 5, first)
    second.kill()
    began = time.monotonic()
    _, errors = first.communicate(timeout=180)
    assert first.returncode != 0 and errors.strip()
    assert time.monotonic() - began < 120
    for process in begin(0.0):
        finish(process)
    whole = run(tmp_path / "whole", accumulate_steps=4, **options)
    with np.load(tmp_path / "two" / "params.npz") as two:
        assert_same_params(dict(two), whole.params, rtol=1e-5, atol=1e-6)
    second.communicate()
