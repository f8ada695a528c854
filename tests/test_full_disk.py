"""The real program on a real disk that is full or read-only: one line, and nothing is lost."""

import json

import pytest

from fnet_jax import checkpoint
from tests.full_disk import NotPermittedError, small_disk
from tests.test_cli import SHAPES, run

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        with small_disk(folder, 48) as remount:
            yield folder, remount
    except NotPermittedError:
        pytest.skip("this user may not mount a file system")


def complaint(done) -> str:
    """The one line, besides the plain lines of steps, of a program that gave up."""
    assert done.returncode == 2
    (line,) = [t for t in done.stderr.splitlines() if not t.startswith(("step ", "building "))]
    assert line.startswith("error: ")
    return line


def test_training_on_a_full_and_on_a_read_only_disk(tmp_path, disk):
    folder, remount = disk
    workdir = folder / "run"
    flags = (
        *SHAPES,
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        "--config.dataset.builder_config=tiny",
        "--config.model.subgraph_capacities=(128,)",
        "--config.train.log_every_steps=1",
        f"--workdir={workdir}",
    )
    train = *flags, "--mode=train", "--config.train.checkpoint_every_steps=2"
    # A few checkpoints fit.
    line = complaint(run(*train, "--config.train.keep_checkpoints=9"))
    assert "a checkpoint needs " in line and f"{workdir}/checkpoints" in line
    assert "those before it are kept. Make room" in line
    kept = checkpoint.restore_latest(workdir).step
    assert kept >= 2

    filler = folder / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    line = complaint(run(*train, "--config.train.checkpoint_every_steps=100"))
    assert str(workdir) in line and "No space left on device" in line
    assert checkpoint.restore_latest(workdir).step == kept

    remount("ro")
    assert "Read-only file system" in complaint(run(*train))
    assert "Read-only file system" in complaint(run(*flags, "--mode=eval"))
    remount("rw,size=96m")
    filler.unlink()
    done = run(*train, f"--config.train.max_steps={kept + 1}")
    assert done.returncode == 0, done.stderr
    steps = [json.loads(t)["step"] for t in (workdir / "train_log.jsonl").open()]
    assert steps == list(range(1, kept + 2))
