"""Image-loading processes that die, hang or lose their parent: real processes, real signals."""

import dataclasses
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fnet_jax.errors import UserError
from fnet_jax.read_ahead import ReadAhead
from tests.test_cli import ROOT

POSITIONS = range(4, 60, 4)


@dataclasses.dataclass(frozen=True)
class Load:
    """Batches that say what they are, from processes that fall ill at a position.

    A file `folder/POSITION` holds the signal that the process sends to itself there, once, or, if
    `again`, each time.
    """

    folder: pathlib.Path
    again: bool = False

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        order = self.folder / str(position)
        if order.exists():
            number = int(order.read_text())
            if not self.again:
                order.unlink()
            os.kill(os.getpid(), number)
        return {"a": np.full((2, 3), position), "pid": np.array(os.getpid())}


def reading(folder, *, again=False, timeout=60.0, num_workers=2):
    return ReadAhead(
        Load(folder, again),
        POSITIONS,
        num_workers=num_workers,
        timeout=timeout,
        describe=lambda position: f"photo{position}.jpg",
    )


def read_all(batches) -> set[int]:
    """Checks that every batch comes, once and in order; returns the processes that read."""
    found, pids = [], set()
    for batch in batches:
        found.append(int(batch["a"][0, 0]))
        assert (batch["a"] == found[-1]).all()
        pids.add(int(batch["pid"]))
    assert found == list(POSITIONS)
    return pids


def is_running(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def none_runs(pids) -> bool:
    return not any(map(is_running, pids))


def test_a_worker_that_is_killed_is_replaced(tmp_path, capsys):
    (tmp_path / "24").write_text(str(int(signal.SIGKILL)))
    batches = reading(tmp_path)
    pids = read_all(batches)
    batches.close()
    assert len(pids) > 2 and os.getpid() not in pids
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: a process that loads images died (exit code -9), at photo")
    wait_until(lambda: none_runs(pids), 5)


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(tmp_path, capsys):
    (tmp_path / "24").write_text(str(int(signal.SIGSTOP)))
    batches = reading(tmp_path, timeout=15)
    pids = read_all(batches)
    batches.close()
    assert len(pids) > 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"warning: no batch was read for 15 s, at photo(8|16|24)\.jpg or soon", line)
    wait_until(lambda: none_runs(pids), 5)


def test_what_kills_every_worker_ends_the_reading(tmp_path, capsys):
    (tmp_path / "12").write_text(str(int(signal.SIGKILL)))
    batches = reading(tmp_path, again=True, num_workers=1)
    expected = r"^a process that loads images died \(exit code -9\), at photo(4|8|12)\.jpg or soon "
    with pytest.raises(UserError, match=expected + r"after, 4 times in a row; look at .*") as error:
        read_all(batches)
    assert "\n" not in str(error.value)
    wait_until(lambda: not multiprocessing.active_children(), 20)


def test_workers_do_not_hear_ctrl_c(tmp_path, capsys):
    """It comes to the whole terminal, but the trainer finishes its step, with their images."""
    for position in (8, 24):
        (tmp_path / str(position)).write_text(str(int(signal.SIGINT)))
    batches = reading(tmp_path)
    assert len(read_all(batches)) == 2
    batches.close()
    assert not capsys.readouterr().err


def test_errors_of_loading_are_those_of_the_reader(tmp_path):
    for num_workers in (0, 1):
        (tmp_path / "16").write_text("no number")
        batches = reading(tmp_path, num_workers=num_workers)
        with pytest.raises(ValueError, match="invalid literal"):
            read_all(batches)
        batches.close()


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """And with them what they left in shared memory."""
    before = shared_memory()
    program = (
        "import pathlib, sys, time\n"
        "from tests.test_read_ahead import reading\n"
        "if __name__ == '__main__':\n"
        "    batches = reading(pathlib.Path(sys.argv[1]))\n"
        "    print(*{int(next(batches)['pid']) for _ in range(4)}, flush=True)\n"
        "    time.sleep(300)\n"
    )
    (tmp_path / "parent.py").write_text(program)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(map(is_running, pids))
    theirs = shared_memory() - before
    assert theirs
    parent.kill()
    parent.communicate()
    wait_until(lambda: none_runs(pids), 20)
    # Other tests that run meanwhile free theirs, too.
    wait_until(lambda: not theirs & shared_memory(), 60)
