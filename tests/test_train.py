"""The training loop: devices, accumulation, phases, exact resume, clear stops."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from fnet_jax import checkpoint, optim
from fnet_jax.errors import UserError
from fnet_jax.train_plan import BEST_METRIC, BEST_RPN_METRIC
from fnet_jax.train_step import NonFiniteLossError
from tests import train_process
from tests.train_process import flat, run, toy_params

ROOT = pathlib.Path(__file__).parents[1]
TIMES = ("seconds_per_step", "images_per_second", "data_wait_share")


def records(workdir, name="train_log.jsonl") -> list[dict]:
    """What was logged, without the timings, which differ from run to run."""
    lines = [json.loads(line) for line in (pathlib.Path(workdir) / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_same_params(a, b, **tolerance):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], err_msg=path, **({"rtol": 0} | tolerance))


def start(workdir, devices=1, **options) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.train_process", str(workdir), json.dumps(options)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_four_devices_equal_four_accumulated_steps(tmp_path):
    # 10 images, 4 a step: 3 steps an epoch, and the epochs overlap within a step.
    options = {"batch_options": {"widths": 2}}
    process = start(tmp_path / "devices", devices=4, **options)
    accumulated = run(tmp_path / "steps", accumulate_steps=4, **options)
    finish(process)
    assert accumulated.step == 6
    with np.load(tmp_path / "devices" / "params.npz") as parallel:
        assert_same_params(dict(parallel), accumulated.params, rtol=1e-5, atol=1e-6)
    start_params = flat(toy_params())
    assert all(
        np.abs(leaf - start_params[path]).max() > 1e-4  # a hundred times the tolerance
        for path, leaf in flat(accumulated.params).items()
        if not path.startswith(("backbone/conv1", "backbone/conv2"))
    )
    for one, other in zip(records(tmp_path / "devices"), records(tmp_path / "steps"), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_equal_accumulated_steps(tmp_path):
    """Two processes of two devices, stopped and resumed, against four accumulated steps."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    for max_steps in (4, None):
        processes = [
            start(tmp_path / "two", devices=2, distributed=[address, 2, i], max_steps=max_steps)
            for i in range(2)
        ]
        for process in processes:
            finish(process)
    accumulated = run(tmp_path / "steps", accumulate_steps=4)
    for name in ("params.npz", "params1.npz"):
        with np.load(tmp_path / "two" / name) as parallel:
            assert_same_params(dict(parallel), accumulated.params, rtol=1e-5, atol=1e-6)
    assert len(checkpoint.restore_latest(tmp_path / "two").data_states) == 2
    totals = [[r["total"] for r in records(tmp_path / d)] for d in ("two", "steps")]
    np.testing.assert_allclose(*totals, rtol=1e-5)


def test_a_step_is_the_mean_of_its_images(tmp_path):
    """One accumulated SGD step against gradients that are computed and averaged by hand."""
    result = run(
        tmp_path,
        accumulate_steps=2,
        max_steps=1,
        momentum=0.0,
        weight_decay=0.0,
        clip_norm=1e9,
        backbone_lr_factor=0.5,
    )
    batches = train_process.ToyBatches(1)
    phase = optim.phases("from_rpn", lr_decay_epochs=2, frozen_backbone_layers=4)
    gradients = []
    for index in range(2):
        example = {k: v[0] for k, v in next(batches).items()}
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), index)
        loss = lambda p, e=example, k=key: train_process.toy_loss(p, e, k, phase[0])[0]  # noqa: E731
        gradients.append(flat(jax.grad(loss)(toy_params())))
    trained = flat(result.params)
    for path, before in flat(toy_params()).items():
        factor = 0.5 if path.startswith("backbone") else 1.0
        if path.split("/")[1] in train_process.VGG[:4]:
            factor = 0.0
        mean = (gradients[0][path] + gradients[1][path]) / 2
        np.testing.assert_allclose(trained[path], before - 0.01 * factor * mean, atol=1e-6)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(workdir, result) of two undisturbed epochs with the default options."""
    workdir = tmp_path_factory.mktemp("plain")
    return workdir, run(workdir)


def test_every_step_differs(plain):
    """The yardstick of the resume tests: with equal losses bit-identity would prove nothing."""
    totals = [record["total"] for record in records(plain[0])]
    assert len(totals) == len(set(totals)) == 20


def test_cosine_schedule(tmp_path):
    """From the given rate to almost nothing; half of it in the middle, whatever the epochs are."""
    run(tmp_path / "cosine", lr_schedule="cosine", learning_rate=0.01, epochs=2)
    rates = np.array([record["learning_rate"] for record in records(tmp_path / "cosine")])
    assert rates[0] == 0.01
    assert rates[len(rates) // 2] == pytest.approx(0.005)
    assert (np.diff(rates) < 0).all() and 0 < rates[-1] < 0.001
    with pytest.raises(UserError, match=r"config\.train\.lr_schedule='flat'"):
        run(tmp_path / "flat", lr_schedule="flat")


END_TO_END = {"stage": "end_to_end", "epochs": 3, "lr_decay_epochs": 2, "log_every_steps": 4}
END_TO_END["fit_options"] = {
    "evaluate_fn": lambda p: {BEST_METRIC: float(p["rpn"]["conv"]["kernel"][0, 0])}
}


@pytest.fixture(scope="module")
def end_to_end(tmp_path_factory):
    """(workdir, result) of three undisturbed epochs, the last with a freed backbone."""
    workdir = tmp_path_factory.mktemp("end_to_end")
    return workdir, run(workdir, **END_TO_END)


@pytest.mark.parametrize("stop", [7, 20])
def test_resume_repeats_an_undisturbed_run(tmp_path, end_to_end, stop):
    """Stopped in mid-epoch and between two records, and at the step that frees the backbone."""
    workdir, whole = end_to_end
    first = run(tmp_path, **END_TO_END, max_steps=stop)
    assert first.step == stop and not first.interrupted
    rest = run(tmp_path, **END_TO_END)
    assert rest.step == whole.step == 30
    assert_same_params(rest.params, whole.params)
    for name in ("train_log.jsonl", "eval_log.jsonl"):
        assert records(tmp_path, name) == records(workdir, name)
    assert rest.best_metric == whole.best_metric
    assert [r["step"] for r in records(tmp_path)] == [4, 8, 12, 16, 20, 24, 28, 30]


def test_phases_freeze_and_free(tmp_path):
    seen = [toy_params()]

    def evaluate(params):
        seen.append(jax.tree.map(np.array, params))
        return {BEST_METRIC: 0.0}

    run(
        tmp_path,
        stage="end_to_end",
        epochs=4,
        lr_decay_epochs=2,
        fit_options={"evaluate_fn": evaluate},
    )
    assert len(seen) == 5

    def moved(layer, epoch):
        before, after = (flat(p)[f"{layer}/kernel"] for p in seen[epoch - 1 : epoch + 1])
        return bool((before != after).any())

    assert [moved("rpn/conv", e) for e in (1, 2, 3, 4)] == [True] * 4
    assert [moved("backbone/conv5_3", e) for e in (1, 2, 3, 4)] == [False, False, True, True]
    assert not any(moved("backbone/conv2_2", e) for e in (1, 2, 3, 4))
    rates = [record["learning_rate"] for record in records(tmp_path)]
    assert rates == [0.01] * 40  # the schedule starts afresh when the backbone is freed


def test_rpn_stage_trains_the_rpn_on_its_loss_alone(tmp_path):
    """Its best checkpoint is that with the best proposals: there are no relationships yet."""
    recalls = iter([0.4, 0.3])
    evaluate = {"evaluate_fn": lambda _: {BEST_METRIC: 0.0, BEST_RPN_METRIC: next(recalls)}}
    result = run(tmp_path, stage="rpn", fit_options=evaluate)
    assert result.best_metric == 0.4
    assert checkpoint.restore(tmp_path, prefer=checkpoint.BEST).step == 10
    before = flat(toy_params())
    moved = {p for p, leaf in flat(result.params).items() if (leaf != before[p]).any()}
    assert moved == {"rpn/conv/kernel", "rpn/conv/bias"}
    assert "rpn" in records(tmp_path)[0] and "predicate" not in records(tmp_path)[0]
    with pytest.raises(UserError, match="a run of stage 'rpn', not 'from_rpn'"):
        run(tmp_path, stage="from_rpn", epochs=3)


def test_killed_runs_repeat_an_undisturbed_one(tmp_path):
    """SIGKILL in mid-training, then in the middle of a save; bit-identical losses in the end."""
    options = {"epochs": 3, "log_every_steps": 2, "checkpoint_every_steps": 2}
    undisturbed = start(tmp_path / "whole", **options)
    workdir = tmp_path / "killed"
    log = workdir / "train_log.jsonl"
    process = start(workdir, batch_options={"seconds": 0.05}, **options)
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= 4, process)
    process.kill()
    process.communicate()
    reached = records(workdir)[-1]["step"]

    process = start(workdir, batch_options={"seconds": 0.02}, **options)
    folder = workdir / "checkpoints" / "latest"
    wait_for(lambda: step_of(folder) > reached and unfinished(folder), process)
    process.kill()
    process.communicate()
    assert step_of(folder) > reached
    finish(start(workdir, **options))

    finish(undisturbed)
    assert records(workdir) == records(tmp_path / "whole")
    with np.load(workdir / "params.npz") as a, np.load(tmp_path / "whole" / "params.npz") as b:
        assert_same_params(dict(a), dict(b))


def step_of(folder) -> int:
    return max((int(d.name) for d in folder.iterdir() if d.name.isdigit()), default=-1)


def unfinished(folder) -> bool:
    return any("tmp" in d.name for d in folder.iterdir())


def wait_for(condition, process) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.0002)


def test_sigterm_at_the_end_of_an_epoch_defers_its_evaluation(tmp_path):
    """Saved and stopped at once; the same command evaluates first and then goes on."""
    evaluated = []

    def evaluate(params):
        evaluated.append(checkpoint.restore_latest(tmp_path).step)
        return {BEST_METRIC: 0.1}

    hook = lambda position: position == 9 and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    options = {"fit_options": {"evaluate_fn": evaluate}}
    stopped = run(tmp_path, batch_options={"hook": hook}, **options)
    assert stopped.interrupted and stopped.step == 10 and not evaluated
    result = run(tmp_path, **options)
    assert evaluated == [10, 20] and result.best_metric == 0.1
    assert [e["step"] for e in records(tmp_path, "eval_log.jsonl")] == [10, 20]
    run(tmp_path, **options)
    assert evaluated == [10, 20], "nothing is owed any more"


def test_a_failed_evaluation_loses_no_training(tmp_path):
    def fail(params):
        raise UserError("image 7.jpg is damaged")

    with pytest.raises(UserError, match="damaged"):
        run(tmp_path, eval_every_epochs=0, fit_options={"evaluate_fn": fail})
    assert checkpoint.restore_latest(tmp_path).step == 20
    result = run(tmp_path, fit_options={"evaluate_fn": lambda _: {BEST_METRIC: 0.3}})
    assert (result.step, result.best_metric) == (20, 0.3)
    assert checkpoint.restore(tmp_path, prefer=checkpoint.BEST).step == 20


def test_each_continued_run_starts_a_fresh_schedule(tmp_path):
    rates = []
    previous = None
    for name, stage, epochs in (("a", "from_rpn", 2), ("b", "continue", 4), ("c", "continue", 6)):
        options = {"stage": stage, "lr_decay_epochs": 1, "learning_rate": 0.01}
        if previous:
            with pytest.raises(UserError, match=r"raise config\.train\.epochs to go on"):
                run(
                    tmp_path / name,
                    epochs=epochs - 2,
                    fit_options={"resume_from": str(tmp_path / previous)},
                    **options,
                )
        resumed = {"resume_from": str(tmp_path / previous)} if previous else {}
        run(tmp_path / name, epochs=epochs, fit_options=resumed, **options)
        rates.append([record["learning_rate"] for record in records(tmp_path / name)])
        previous = name
    expected = [0.01] * 10 + [0.001] * 10
    np.testing.assert_allclose(rates, [expected] * 3, rtol=1e-9)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_non_finite_term_stops_the_run(tmp_path, accumulate_steps):
    index = int(np.random.default_rng(0).permutation(10)[5])  # the sixth image of the run
    with pytest.raises(NonFiniteLossError) as caught:
        run(
            tmp_path,
            batch_options={"poisoned": index},
            accumulate_steps=accumulate_steps,
            checkpoint_every_steps=1,
        )
    bad_step = 6 // accumulate_steps
    message = str(caught.value)
    assert f"Step {bad_step}: predicate = nan for image {index} (photo{index}.jpg)." in message
    assert f"step {bad_step - 1} is kept" in message and "rpn" not in message
    saved = checkpoint.restore_latest(tmp_path)
    assert saved.step == bad_step - 1
    assert all(np.isfinite(leaf).all() for leaf in flat(saved.params).values())
    assert [record["step"] for record in records(tmp_path)] == list(range(1, bad_step))


def test_non_finite_gradient_stops_the_run(tmp_path):
    index = int(np.random.default_rng(0).permutation(10)[2])
    with pytest.raises(NonFiniteLossError) as caught:
        run(tmp_path, batch_options={"bad_slope": index}, checkpoint_every_steps=1)
    assert "Step 3: gradient_norm = nan" in str(caught.value)
    assert f"{index} (photo{index}.jpg)" in str(caught.value)
    assert checkpoint.restore_latest(tmp_path).step == 2


def test_latest_and_best(tmp_path):
    scores = iter([0.2, 0.5, 0.5, 0.3])
    result = run(
        tmp_path, epochs=4, fit_options={"evaluate_fn": lambda _: {BEST_METRIC: next(scores)}}
    )
    assert result.best_metric == 0.5
    latest, best = (
        checkpoint.restore(tmp_path, prefer=kind) for kind in (checkpoint.LATEST, checkpoint.BEST)
    )
    assert (latest.step, latest.epoch, latest.best_metric) == (40, 4, 0.5)
    assert (best.step, best.epoch, best.best_metric) == (20, 2, 0.5)
    assert_same_params(latest.params, result.params)
    evaluations = records(tmp_path, "eval_log.jsonl")
    assert [(e["step"], e[BEST_METRIC]) for e in evaluations] == [
        (10, 0.2),
        (20, 0.5),
        (30, 0.5),
        (40, 0.3),
    ]


def test_evaluation_every_other_epoch_and_at_the_end(tmp_path):
    calls = []
    evaluate = {"evaluate_fn": lambda _: calls.append(1) or {BEST_METRIC: 0.1}}
    run(tmp_path, epochs=3, eval_every_epochs=2, fit_options=evaluate)
    assert [e["epoch"] for e in records(tmp_path, "eval_log.jsonl")] == [2, 3]
    run(tmp_path, epochs=3, eval_every_epochs=2, fit_options=evaluate)  # has nothing left to do
    assert len(calls) == 2


def test_more_epochs_from_another_run(tmp_path, plain):
    """Stage "continue": another run's checkpoint, with its optimizer and data position."""
    run(tmp_path / "first", epochs=1)
    source = {"resume_from": str(tmp_path / "first")}
    more = run(tmp_path / "more", stage="continue", fit_options=source)
    assert more.step == 20
    assert_same_params(more.params, plain[1].params)
    assert records(tmp_path / "more") == records(plain[0])[10:]


def test_another_optimizer_starts_afresh_and_says_so(tmp_path, capsys):
    run(tmp_path, max_steps=1)
    capsys.readouterr()
    assert run(tmp_path, max_steps=2, optimizer="adagrad").step == 2
    assert "fresh optimizer state" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate_steps": 0}, r"config\.train\.accumulate_steps=0"),
        ({"stage": "warmup"}, r"config\.train\.stage='warmup'"),
        ({"fit_options": {"num_images": 0}}, "no images"),
        ({"fit_options": {"resume_from": "/nowhere"}}, "No checkpoint at /nowhere"),
    ],
)
def test_mistakes_are_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_other_classes_or_shapes_are_refused(tmp_path):
    names = {"object_names": ["background", "dog"], "anchors": {"scales": [1.5]}}
    run(tmp_path, max_steps=1, fit_options={"metadata": names})
    run(tmp_path, max_steps=2, fit_options={"metadata": names})
    with pytest.raises(UserError, match="other object_names"):
        run(tmp_path, fit_options={"metadata": names | {"object_names": ["background", "cat"]}})
    params = toy_params()
    params["predicate_score"]["bias"] = np.zeros(5, np.float32)
    with pytest.raises(UserError, match=r"predicate_score/bias is \(4,\) instead of \(5,\)"):
        run(tmp_path, fit_options={"params": params})
