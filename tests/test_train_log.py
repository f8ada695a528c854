"""The training log: records, windows that survive a restart, a bar or plain lines."""

import io
import json

import pytest

from fnet_jax.errors import UserError
from fnet_jax.train_log import TrainLog
from tests.full_disk import files_end_at


def open_log(workdir, **changes) -> TrainLog:
    options = {
        "every": 2,
        "first_step": 0,
        "last_step": 10,
        "images_per_step": 4,
        "window": {},
        "enabled": True,
    }
    return TrainLog(workdir, **(options | changes))


def feed(log, steps) -> None:
    """Steps of 0.5 s, a quarter of it waiting; losses that no two windows share."""
    for step in steps:
        log.step(step, step // 5, 0.01, {"rpn": 1.0 / step, "total": 0.1 * step**2}, 0.5, 0.125)


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_average_their_window(tmp_path):
    log = open_log(tmp_path)
    feed(log, range(1, 5))
    log.close()
    first, second = read(tmp_path / "train_log.jsonl")
    assert first == {
        "step": 2,
        "epoch": 0,
        "learning_rate": 0.01,
        "rpn": (1 + 1 / 2) / 2,
        "total": (0.1 + 0.4) / 2,
        "seconds_per_step": 0.5,
        "images_per_second": 8.0,
        "data_wait_share": 0.25,
    }
    assert second["step"] == 4 and second["total"] == pytest.approx((0.9 + 1.6) / 2)


@pytest.mark.parametrize("stop", [3, 4, 7])
def test_resumed_log_equals_an_undisturbed_one(tmp_path, stop):
    """Saved at `stop`, killed two steps later with half a line written."""
    whole = open_log(tmp_path / "whole", every=3)
    feed(whole, range(1, 11))
    whole.close()
    log = open_log(tmp_path / "parts", every=3)
    feed(log, range(1, stop + 1))
    window = json.loads(json.dumps(log.window))
    log.evaluation(stop, 1, {"recall": 0.5})
    feed(log, range(stop + 1, stop + 3))
    log.evaluation(stop + 1, 1, {"recall": 0.7})
    log.close()
    with (tmp_path / "parts" / "train_log.jsonl").open("a") as file:
        file.write('{"step": 9, "to')
    log = open_log(tmp_path / "parts", every=3, first_step=stop, window=window)
    feed(log, range(stop + 1, 11))
    log.close()
    assert read(tmp_path / "parts" / "train_log.jsonl") == read(tmp_path / "whole/train_log.jsonl")
    evaluations = read(tmp_path / "parts" / "eval_log.jsonl")
    assert evaluations == [{"step": stop, "epoch": 1, "recall": 0.5}]


def test_the_last_step_is_recorded_and_corrected_when_training_goes_on(tmp_path):
    log = open_log(tmp_path, every=4, last_step=6)
    feed(log, range(1, 7))
    assert [r["step"] for r in read(tmp_path / "train_log.jsonl")] == [4, 6]
    window = log.window
    log.close()
    log = open_log(tmp_path, every=4, first_step=6, last_step=8, window=window)
    feed(log, (7, 8))
    log.close()
    whole = read(tmp_path / "train_log.jsonl")
    assert [r["step"] for r in whole] == [4, 8]
    assert whole[1]["total"] == pytest.approx(0.1 * (25 + 36 + 49 + 64) / 4)


def test_a_changed_interval_keeps_the_history(tmp_path):
    log = open_log(tmp_path, every=1)
    feed(log, (1, 2, 3))
    window = log.window
    log.close()
    open_log(tmp_path, every=5, first_step=3, window=window).close()
    assert [r["step"] for r in read(tmp_path / "train_log.jsonl")] == [1, 2, 3]


def test_tensorboard_events_hold_the_scalars(tmp_path):
    log = open_log(tmp_path)
    feed(log, (1, 2))
    log.evaluation(2, 1, {"relationship_recall@50": 0.5})
    log.close()
    (events,) = (tmp_path / "tensorboard").glob("events*")
    content = events.read_bytes()
    for tag in (b"train/rpn", b"train/total", b"progress/learning_rate", b"eval/relationship_reca"):
        assert tag in content


def test_a_disk_without_room_is_named(tmp_path):
    log = open_log(tmp_path, every=1)
    feed(log, range(1, 9))
    message = rf"^{tmp_path}/\S+ cannot be written \(File too large\); "
    with files_end_at(4096), pytest.raises(UserError, match=message):
        feed(log, range(9, 99))
    log.close()
    open_log(tmp_path, every=1, first_step=8).close()
    assert [r["step"] for r in read(tmp_path / "train_log.jsonl")] == list(range(1, 9))


@pytest.mark.parametrize("name", ["train_log.jsonl", "eval_log.jsonl", "tensorboard"])
def test_what_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "tensorboard").write_text("in the way") if name == "tensorboard" else None
    with pytest.raises(UserError, match=rf"{name} cannot be written \("):
        log = open_log(tmp_path, every=1)
        (tmp_path / name).symlink_to("/dev/full")  # always full
        feed(log, [1])
        log.evaluation(1, 0, {"mAP": 0.5})


def test_plain_lines_without_a_terminal(tmp_path, capsys):
    log = open_log(tmp_path)
    feed(log, (1, 2))
    log.close()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("step 2/10 epoch 0: ")
    for part in ("rpn 0.7500", "total 0.2500", "lr 0.01", "0.500 s/step", "25%", "ETA 0:00:04"):
        assert part in line


def test_bar_on_a_terminal(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    log = open_log(tmp_path, first_step=2)
    feed(log, (3, 4))
    log.close()
    shown = terminal.getvalue()
    assert "2/10" in shown and "4/10" in shown
    assert "0.50 s/step" in shown and "loss 1.2500" in shown


def test_other_processes_are_silent_but_keep_the_window(tmp_path, capsys):
    log = open_log(tmp_path / "none", enabled=False, every=4)
    feed(log, (1, 2))
    log.message("hello")
    log.evaluation(2, 1, {"recall": 1.0})
    log.close()
    assert not (tmp_path / "none").exists()
    assert capsys.readouterr().err == ""
    assert log.window["count"] == 2
