"""The command line as a user meets it: one clear line for a mistake."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SHAPES = ("--config", "configs/shapes.py")


def run(*arguments, timeout=600):
    command = [sys.executable, "main.py", *map(str, arguments)]
    # A few steps and images are computed: optimising the programs would take longer.
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), ["--config is missing"]),
        (("--config", "configs/nope.py", "--mode", "train", "--workdir", "x"), ["configs/nope.py"]),
        ((*SHAPES, "--mode", "trian"), ["trian", "train"]),
        ((*SHAPES, "--mode", "train"), ["--workdir is missing"]),
        ((*SHAPES, "--config.train.epoch=3"), ["epoch", "epochs"]),
        ((*SHAPES, "--config.train.epochs=many"), ["config.train.epochs", "many"]),
        ((*SHAPES, "--wrkdir=x"), ["wrkdir", "workdir"]),
    ],
)
def test_mistyped_flags(arguments, names):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    line = done.stderr.strip()
    assert line.startswith("error: ") and "\n" not in line
    assert all(name in line for name in names)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (["--config.dataset.name=coco"], ["coco", "shapes", "vrd"]),
        (["--config.dataset.name=vrd"], ["dataset.manual_dir", "json_dataset"]),
        (["--config.dataset.train_split=trian"], ["trian", "train", "test"]),
        (["--config.train.stage=rpm"], ["train.stage", "rpm", "from_rpn"]),
        (["--config.train.init_from=/nowhere/vgg16.pth"], ["init_from", "/nowhere/vgg16.pth"]),
        (["--config.model.geometry=v3"], ["model.geometry", "v3", "v1", "v2"]),
        (["--config.model.rank_embeddings=8"], ["model.rank_embeddings", "8"]),
        (["--config.anchors.file=/nowhere.json"], ["anchors.file", "/nowhere.json"]),
    ],
)
def test_mistakes_in_the_config(tmp_path, changes, names):
    dataset = [f"--config.dataset.data_dir={tmp_path.parent / 'data'}"]
    if "dataset.name" not in changes[0]:
        dataset.append("--config.dataset.builder_config=tiny")
    done = run(*SHAPES, "--mode", "train", "--workdir", tmp_path / "run", *dataset, *changes)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in done.stderr
    assert all(name in last for name in names), last


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--coordinator=localhost:1",), ["--num_processes is missing", "--coordinator needs it"]),
        (("--coordinator=a:1", "--num_processes=2", "--process_id=2"), ["--process_id=2", "below"]),
        (("--cluster", "--process_id=0"), ["--cluster", "--process_id"]),
        (("--cluster",), ["--cluster: the processes cannot be joined"]),
    ],
    ids=str,
)
def test_mistakes_about_processes(arguments, words):
    done = run(*SHAPES, "--mode", "train", "--workdir", "x", *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in words), last
