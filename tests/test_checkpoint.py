"""Checkpoints: what comes back, what survives a kill, what is refused and how."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fnet_jax import checkpoint
from fnet_jax.checkpoint import BEST, LATEST, Checkpoint, Checkpoints
from fnet_jax.errors import UserError
from tests.full_disk import files_end_at


def make(step: int, **changes) -> Checkpoint:
    """A checkpoint whose every number depends on its step."""
    fields = {
        "step": step,
        "epoch": step // 10,
        "params": {
            "rpn": {"conv": {"kernel": np.full((2, 3), step, np.float32)}},
            "predicate_score": {"bias": np.arange(3, dtype=np.float32) + step},
        },
        "optimizer": {"[0].count": np.array(step, np.int32), "[1].trace['a/b']": np.ones(4) * step},
        "data_states": [{"position": step, "inner": {"seed": 2**40}}],
        "stage": "rpn",
        "best_metric": None,
        "best_metric_name": "recall",
        "log_window": {"count": 1, "sums": {"total": 0.1}},
        "metadata": {
            "config": {"seed": 1},
            "object_names": ["background", "dog"],
            "anchors": [0.1],
        },
    }
    return Checkpoint(**(fields | changes))


def assert_equal(a: Checkpoint, b: Checkpoint) -> None:
    arrays = ("params", "optimizer")
    for name in (field.name for field in dataclasses.fields(a) if field.name not in arrays):
        assert getattr(a, name) == getattr(b, name)
    for name in arrays:
        one, other = getattr(a, name), getattr(b, name)
        assert jax.tree.structure(one) == jax.tree.structure(other)
        jax.tree.map(np.testing.assert_array_equal, one, other)
        assert jax.tree.map(lambda x: x.dtype, one) == jax.tree.map(lambda x: x.dtype, other)


@pytest.fixture
def workdir(tmp_path):
    """A workdir with latest = 30 (after 20) and best = 10."""
    writer = Checkpoints(tmp_path)
    writer.save(LATEST, make(20))
    writer.save(BEST, make(10, best_metric=0.25))
    writer.save(LATEST, make(30, best_metric=0.25))
    writer.close()
    return tmp_path


def test_round_trip_and_every_way_to_name_it(workdir):
    latest, best = make(30, best_metric=0.25), make(10, best_metric=0.25)
    for path, expected in [
        (workdir, latest),
        (workdir / "checkpoints", latest),
        (workdir / "checkpoints" / "latest", latest),
        (workdir / "checkpoints" / "latest" / "30", latest),
        (workdir / "checkpoints" / "best", best),
        (str(workdir / "checkpoints" / "best" / "10"), best),
    ]:
        assert_equal(checkpoint.restore(path), expected)
    assert_equal(checkpoint.restore(workdir, prefer=BEST), best)
    assert_equal(checkpoint.restore_latest(workdir), latest)
    assert checkpoint.restore_best_metric(workdir, "recall") == 0.25
    assert checkpoint.restore_best_metric(workdir, "another") is None


def test_the_newest_of_each_kind_are_kept(workdir):
    def names():
        return {p.parent.name + "/" + p.name for p in (workdir / "checkpoints").glob("*/*")}

    assert names() == {"latest/20", "latest/30", "best/10"}
    reopened = Checkpoints(workdir)
    assert (reopened.step(LATEST), reopened.step(BEST)) == (30, 10)
    reopened.save(LATEST, make(40))
    reopened.save(BEST, make(35, best_metric=0.25))
    reopened.close()
    assert names() == {"latest/30", "latest/40", "best/35"}


def test_a_step_that_does_not_follow_is_refused(workdir):
    reopened = Checkpoints(workdir)
    for step in (10, 9):
        with pytest.raises(ValueError, match=f"step {step} does not follow step 10"):
            reopened.save(BEST, make(step, best_metric=0.5))
    reopened.close()
    assert checkpoint.restore_best_metric(workdir, "recall") == 0.25


def test_a_best_checkpoint_without_its_run_is_refused(workdir, tmp_path):
    checkpoint.check_not_orphaned(workdir)
    checkpoint.check_not_orphaned(tmp_path / "new")
    shutil.rmtree(workdir / "checkpoints" / "latest")
    with pytest.raises(UserError, match="run whose latest checkpoint is gone; move or delete"):
        checkpoint.check_not_orphaned(workdir)


def test_a_workdir_without_checkpoints(tmp_path):
    assert checkpoint.restore_latest(tmp_path) is None
    assert checkpoint.restore_best_metric(tmp_path, "recall") is None
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=f"No checkpoint at {path}"):
            checkpoint.restore(path)


def test_best_stands_in_where_there_is_no_latest(workdir):
    shutil.rmtree(workdir / "checkpoints" / "latest")
    assert checkpoint.restore(workdir).step == 10
    assert checkpoint.restore_latest(workdir) is None


@pytest.mark.parametrize("damage", ["no metadata", "junk", "no params", "broken json", "old json"])
def test_unreadable_is_one_line_with_the_path(workdir, damage):
    step_dir = workdir / "checkpoints" / "latest" / "30"
    if damage == "no metadata":
        (step_dir / "params" / "_METADATA").unlink()
    elif damage == "junk":
        (step_dir / "params" / "manifest.ocdbt").write_bytes(b"junk")
    elif damage == "no params":
        shutil.rmtree(step_dir / "params")
    elif damage == "broken json":
        (step_dir / "meta" / "metadata").write_text("{")
    else:
        (step_dir / "meta" / "metadata").write_text('{"stepp": 3}')
    with pytest.raises(UserError, match=str(step_dir)) as caught:
        checkpoint.restore(step_dir)
    assert "\n" not in str(caught.value)


def damage_numbers(step_dir: pathlib.Path) -> None:
    """Flips bits of the parameters where they are stored."""
    for file in (step_dir / "params").rglob("*"):
        if file.is_file() and "/d/" in str(file):
            content = bytearray(file.read_bytes())
            content[len(content) // 2 :] = bytes(255 - x for x in content[len(content) // 2 :])
            file.write_bytes(content)


def torn(step_dir: pathlib.Path) -> None:
    """Cuts every file in half, as a disk may that lost power."""
    for file in step_dir.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("harm", [damage_numbers, torn])
def test_the_one_before_a_damaged_checkpoint_is_taken(workdir, capsys, harm):
    newest = workdir / "checkpoints" / "latest" / "30"
    harm(newest)
    with pytest.raises(checkpoint.DamagedError, match=str(newest)):
        checkpoint.restore(newest)
    assert_equal(checkpoint.restore_latest(workdir), make(20))
    warning = capsys.readouterr().err
    assert str(newest) in warning and warning.rstrip().endswith(f"taking {newest.parent / '20'}")
    checkpoint.set_damaged_aside(workdir, 20)
    again = Checkpoints(workdir)
    again.save(LATEST, make(30))
    again.close()
    assert_equal(checkpoint.restore_latest(workdir), make(30))
    assert (newest.parent / "30.damaged").is_dir()
    assert capsys.readouterr().err == ""


def test_numbers_that_changed_on_disk_are_noticed(workdir):
    """Even where every file can be read: the digest of other arrays is another."""
    for name in ("params", "optimizer"):
        changed = workdir / name
        writer = Checkpoints(changed)
        writer.save(LATEST, make(5))
        writer.save(LATEST, make(6))
        writer.close()
        folder = changed / "checkpoints" / "latest"
        shutil.rmtree(folder / "6" / name)
        shutil.copytree(folder / "5" / name, folder / "6" / name)
        with pytest.raises(checkpoint.DamagedError, match=f"{name} are not as they were written"):
            checkpoint.restore(folder / "6")


def test_saved_arrays_may_change_at_once(tmp_path):
    """What is written in the background is what was given."""
    writer = Checkpoints(tmp_path)
    array = np.full((500, 2000), 3, np.float32)
    writer.save(LATEST, make(1, params={"layer": array}))
    array[:] = 4
    writer.close()
    assert (checkpoint.restore(tmp_path).params["layer"] == 3).all()


def test_a_save_that_fails_is_one_line_and_loses_nothing(workdir):
    writer = Checkpoints(workdir)
    large = np.random.default_rng(0).normal(size=(500, 1000))
    message = "--workdir: a checkpoint cannot be written"
    with files_end_at(100_000), pytest.raises(UserError, match=message) as caught:
        writer.save(LATEST, make(40, params={"layer": large}))
        writer.wait(LATEST)
    assert "\n" not in str(caught.value) and "those before it are kept" in str(caught.value)
    assert_equal(checkpoint.restore_latest(workdir), make(30, best_metric=0.25))


def test_a_full_disk_is_noticed_before_a_save(workdir, monkeypatch):
    usage = shutil.disk_usage(workdir)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_900_000))
    writer = Checkpoints(workdir)
    with pytest.raises(
        UserError, match=r"needs 4 MB, and \S+ has 2 MB left; those before"
    ) as caught:
        writer.save(LATEST, make(40, params={"layer": np.zeros((1000, 1000), np.float32)}))
    assert "\n" not in str(caught.value)
    assert_equal(checkpoint.restore_latest(workdir), make(30, best_metric=0.25))


def test_misfits_are_listed(workdir):
    template = {
        "rpn": {"conv": {"kernel": jax.ShapeDtypeStruct((5, 3), np.float32)}},
        "object_score": {"bias": np.zeros(2)},
    }
    with pytest.raises(UserError) as caught:
        checkpoint.restore(workdir, template)
    message = str(caught.value)
    assert "object_score/bias is missing" in message
    assert "predicate_score/bias is unknown" in message
    assert "rpn/conv/kernel is (2, 3) instead of (5, 3)" in message
    assert "\n" not in message
    checkpoint.restore(workdir, make(1).params)


def test_long_lists_of_misfits_are_cut():
    with pytest.raises(UserError, match="; and 8 more"):
        checkpoint.check_fits({}, {f"layer{i}": np.zeros(1) for i in range(20)}, "here")


def test_other_classes_are_refused():
    saved = make(1)
    checkpoint.check_metadata(saved, {"object_names": ("background", "dog")}, "here")
    checkpoint.check_metadata(saved, {"config": {"seed": 2}, "predicate_names": ["on"]}, "here")
    with pytest.raises(UserError, match="other anchors"):
        checkpoint.check_metadata(saved, {"anchors": [0.2]}, "here")


def test_optimizer_state_round_trip():
    params = {"a/b": jnp.arange(3.0), "c": jnp.ones((2, 2))}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.trace(0.9))
    state = jax.tree.map(lambda x: x + 3, optimizer.init(params))
    flat = checkpoint.flatten_state(state)
    assert all(isinstance(leaf, np.ndarray) for leaf in flat.values())
    back = checkpoint.unflatten_state(flat, optimizer.init(params))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    other = optax.trace(0.9).init(params)
    assert checkpoint.unflatten_state(flat, other) is None
    assert checkpoint.unflatten_state(flat, optimizer.init({**params, "c": jnp.ones(4)})) is None


SAVER = """
import itertools, sys
import numpy as np
from fnet_jax.checkpoint import LATEST, Checkpoint, Checkpoints
writer = Checkpoints(sys.argv[1], keep=1)
for step in itertools.count((writer.step(LATEST) or 0) + 1):
    arrays = {f"layer{i}": np.full((250, 1000), step, np.float32) for i in range(20)}
    optimizer = {"m": np.full(9, step)}
    writer.save(LATEST, Checkpoint(step, 0, arrays, optimizer, [{"position": step}], "rpn"))
"""


def test_kill_in_mid_save_leaves_a_whole_checkpoint(tmp_path):
    """SIGKILL while a save (1st), or the removal of the step before (2nd), is under way."""
    folder = tmp_path / "checkpoints" / "latest"

    def names():
        return [d.name for d in folder.iterdir()] if folder.exists() else []

    conditions = (
        lambda: "tmp" in "".join(names()) and any(n.isdigit() for n in names()),
        lambda: sum(n.isdigit() for n in names()) == 2,
    )
    last = 0
    for condition in conditions:
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)])
        started, deadline = last, time.monotonic() + 60
        try:
            while not (condition() and max(int(n) for n in names() if n.isdigit()) > started):
                assert process.poll() is None and time.monotonic() < deadline
        finally:
            process.kill()
            process.wait()
        saved = checkpoint.restore_latest(tmp_path)
        assert saved.step > last
        last = saved.step
        assert all((leaf == last).all() for leaf in saved.params.values())
        assert (saved.optimizer["m"] == last).all() and saved.data_states == [{"position": last}]
    reopened = Checkpoints(tmp_path)  # tidies up what the kills left
    reopened.save(LATEST, make(last + 1))
    reopened.close()
    assert sorted(names(), key=int)[-1] == str(last + 1)


def test_unwritable_workdir_is_a_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir"):
        Checkpoints(tmp_path / "file")


def test_meta_is_plain_json(workdir):
    """Other tools may read class names and config without orbax."""
    path = pathlib.Path(workdir) / "checkpoints" / "latest" / "30" / "meta" / "metadata"
    assert json.loads(path.read_text())["metadata"]["object_names"] == ["background", "dog"]
