"""Thousands of steps and images of all sizes: memory and compiled programs do not grow.

The real program is watched from outside.
"""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from tests.test_cli import ROOT

pytestmark = pytest.mark.slow

STEPS = 2000
EVALUATED = 26_000
SIZES = ((48, 64), (64, 48), (60, 60), (40, 80), (80, 40), (56, 72), (72, 56), (64, 64))
# As many classes as VRD, and so as many detections of an image; a network of few numbers.
OBJECTS = [f"object {index}" for index in range(100)]
PREDICATES = [f"predicate {index}" for index in range(70)]
CONFIG = (
    *("--config", "configs/vrd_small.py"),
    "--config.model.vgg_widths=(4,4,4,4,8,8,8,8,8,8,16,16,16)",
    *(f"--config.model.{name}=32" for name in ("dim_rpn", "dim_object", "dim_subgraph")),
    *(f"--config.model.{name}=32" for name in ("dim_predicate", "dim_attention")),
    "--config.model.pool_size=3",
    "--config.model.subgraph_capacities=(128,)",
    *("--config.image.train_scales=(40,48,64)", "--config.image.test_scale=48"),
    "--config.image.max_size=128",
    "--config.image.buckets=((64,96),(96,64),(48,48),(64,64),(48,96),(96,48),(128,128))",
    *("--config.train.object_batch=16", "--config.train.relation_batch=16"),
    *("--config.rpn_train.min_size=4.0", "--config.test.min_size=4.0"),
    *("--config.test.post_nms=50", "--config.test.max_objects=24"),
    "--config.dataset.num_workers=2",
)


def write_source(folder: pathlib.Path, train: int, test: int) -> pathlib.Path:
    """Photos of noise in VRD's official layout, and one relationship on each."""
    names = {"objects.json": OBJECTS, "predicates.json": PREDICATES}
    (folder / "json_dataset").mkdir(parents=True)
    for name, content in names.items():
        (folder / "json_dataset" / name).write_text(json.dumps(content))
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        photos = folder / "sg_dataset" / f"sg_{split}_images"
        photos.mkdir(parents=True)
        annotations = {}
        for index in range(count):
            height, width = SIZES[index % len(SIZES)]
            image = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
            cv2.imwrite(str(photos / f"{index}.jpg"), cv2.resize(image, (width, height)))
            first, second = (
                {"category": int(rng.integers(100)), "bbox": [y, y + 23, x, x + 19]}
                for y, x in ((2, 3), (height - 28, width - 24))
            )
            annotations[f"{index}.jpg"] = [
                {"predicate": int(rng.integers(70)), "subject": first, "object": second}
            ]
        (folder / "json_dataset" / f"annotations_{split}.json").write_text(json.dumps(annotations))
    return folder


class Sample(NamedTuple):
    """What was seen at one moment."""

    progress: int
    main: float  # MB of memory of the program
    workers: float  # MB, of the processes that load images
    compiled: int  # programs so far


def resident(pid: int) -> float:
    """MB that belong to this process alone."""
    try:
        rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    private = [line for line in rollup.splitlines() if line.startswith("Private_")]
    return sum(int(line.split()[1]) for line in private) / 1024


def children(pid: int) -> list[int]:
    """Processes that any thread of this one started."""
    lists = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    try:
        return [int(child) for path in lists for child in path.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def watch(progress, *arguments) -> list[Sample]:
    """Runs the program to its end; `progress()` says how far it is."""
    process = subprocess.Popen(
        [sys.executable, "main.py", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ
        | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_LOG_COMPILES": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    compiled, last = 0, ""

    def listen():
        nonlocal compiled, last
        for line in process.stderr:
            compiled += "Finished XLA compilation" in line
            last = line

    listener = threading.Thread(target=listen)
    listener.start()
    samples = []
    while process.poll() is None:
        workers = sum(map(resident, children(process.pid)))
        samples.append(Sample(progress(), resident(process.pid), workers, compiled))
        time.sleep(1)
    listener.join()
    assert process.returncode == 0, last
    return samples


def lines_of(path: pathlib.Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def at(samples: list[Sample], progress: int) -> Sample:
    """The first sample from `progress` on."""
    return next(sample for sample in samples if sample.progress >= progress)


def test_two_thousand_steps(tmp_path):
    source = write_source(tmp_path / "vrd", train=96, test=4)
    log = tmp_path / "run" / "train_log.jsonl"
    samples = watch(
        lambda: len(lines_of(log)) * 20,
        *CONFIG,
        f"--config.dataset.manual_dir={source}",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        "--config.train.epochs=10000",
        "--config.train.eval_every_epochs=0",
        f"--config.train.max_steps={STEPS}",
        "--config.train.log_every_steps=20",
        "--config.train.checkpoint_every_steps=100",
        "--mode=train",
        f"--workdir={tmp_path / 'run'}",
    )
    early, last = at(samples, STEPS // 4), samples[-2]
    print(*samples[::10], sep="\n")
    assert last.progress >= STEPS - 100
    assert last.compiled == early.compiled > 6
    assert last.main < early.main + 40
    assert last.workers < early.workers + 20


def test_evaluation_streams(tmp_path):
    source = write_source(tmp_path / "vrd", train=4, test=EVALUATED)
    common = (
        *CONFIG,
        f"--config.dataset.manual_dir={source}",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
    )
    steps = "--config.train.max_steps=1", "--config.train.eval_every_epochs=0"
    watch(lambda: 0, *common, *steps, "--mode=train")
    graphs = tmp_path / "run" / "evaluation" / "test" / "graphs.jsonl.partial"
    size = 0

    def progress():
        """Images so far, from the bytes written: lines are of much the same length."""
        nonlocal size
        size = graphs.stat().st_size if graphs.exists() else size
        return size

    samples = watch(progress, *common, "--mode=eval", "--config.test.pictures=0")
    metrics = json.loads((tmp_path / "run" / "evaluation" / "test" / "metrics.json").read_text())
    assert metrics["images"] == EVALUATED
    early, last = at(samples, size // 10), at(samples, size)
    print(early, last)
    assert last.compiled == early.compiled
    # Of each image mAP keeps at most 2000 detections of 5 bytes.
    growth = 0.9 * EVALUATED * 2000 * 5 / 2**20
    assert last.main < early.main + growth * 1.2 + 40
    assert last.workers < early.workers + 20
