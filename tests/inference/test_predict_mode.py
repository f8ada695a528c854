"""`--mode predict` as a user runs it: a folder of photos as they come, a video, given objects."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.inference.checkpoints import save_random
from tests.test_cli import ROOT, run

RNG = np.random.default_rng(5)


def photo(height, width, channels=3):
    return RNG.integers(0, 256, (height, width, channels)).astype(np.uint8).squeeze()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good, broken and odd files."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep").mkdir()
    Image.fromarray(photo(60, 90)).save(folder / "a.jpg")
    Image.fromarray(photo(80, 120)).save(folder / "deep" / "a.jpg")
    Image.fromarray(photo(64, 64, 1)).save(folder / "grey.png")
    Image.fromarray(photo(64, 64, 4)).save(folder / "rgba.png")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(photo(60, 90)).save(folder / "turned.jpg", exif=turned)
    (folder / "half.jpg").write_bytes((folder / "a.jpg").read_bytes()[:900])
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / ".hidden.jpg").write_bytes(b"x")
    (folder / "film.mp4").write_bytes(b"no film")
    video = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 9, (90, 60))
    for _ in range(5):
        video.write(photo(60, 90))
    video.release()
    return folder


GOOD = ["a.jpg", "clip.avi#000000", "clip.avi#000003", "deep/a.jpg", "grey.png", "rgba.png"]
GOOD.append("turned.jpg")
BAD = {
    "empty.png": "no image",
    "film.mp4": "no video",
    "half.jpg": "damaged",
    "notes.txt": "no image",
}


@pytest.fixture(scope="module")
def results(workdir, folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "results"
    done = run(
        "--mode=predict", f"--checkpoint={workdir}", "--input", folder, f"--output={output}",
        "--every=3", "--top_k=4",
    )  # fmt: skip
    return done, output


def lines_of(output):
    return [json.loads(line) for line in (output / "graphs.jsonl").read_text().splitlines()]


def test_all_good_files_are_done_and_all_bad_ones_named(results):
    done, output = results
    assert done.returncode == 3, done.stderr
    assert [line["image"] for line in lines_of(output)] == GOOD
    for name, reason in BAD.items():
        (line,) = [line for line in done.stderr.splitlines() if f"skipped {name}:" in line]
        assert reason in line
    assert "4 skipped" in done.stderr and "Traceback" not in done.stderr
    assert "hidden" not in done.stderr
    assert "7 scene graphs" in done.stdout


def test_boxes_are_in_the_pixels_of_the_turned_original(results):
    _, output = results
    sizes = {line["image"]: (line["height"], line["width"]) for line in lines_of(output)}
    assert sizes["turned.jpg"] == (90, 60) and sizes["deep/a.jpg"] == (80, 120)
    for line in lines_of(output):
        boxes = np.array([item["box"] for item in line["objects"]])
        assert len(boxes) == 12
        assert (boxes >= 0).all() and (boxes[:, 2] < line["width"]).all()
        assert (boxes[:, 3] < line["height"]).all()


def test_pictures_and_page(results):
    done, output = results
    for name in GOOD:
        assert cv2.imread(str(output / "pictures" / f"{name}.png")).shape[0] > 300
    page = (output / "index.html").read_text()
    assert str(output / "index.html") in done.stdout
    assert all(name.split("#")[0] in page for name in GOOD)


def test_the_results_are_boxes_for_another_run(results, workdir, folder, tmp_path):
    _, output = results
    done = run(
        "--mode=predict", f"--checkpoint={workdir}", f"--boxes={output / 'graphs.jsonl'}",
        f"--output={tmp_path}", "--nopictures", "--input", f"{folder}/*.png", folder / "a.jpg",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    before = {line["image"]: line for line in lines_of(output)}
    assert [line["image"] for line in lines_of(tmp_path)] == ["grey.png", "rgba.png", "a.jpg"]
    for line in lines_of(tmp_path):
        old = before[line["image"]]
        assert [item["class"] for item in line["objects"]] == [o["class"] for o in old["objects"]]
        np.testing.assert_allclose(
            [item["box"] for item in line["objects"]], [o["box"] for o in old["objects"]], atol=1e-3
        )
    assert not (tmp_path / "pictures").exists()
    assert "skipped empty.png" in done.stderr


@pytest.mark.slow
def test_on_two_devices(results, workdir, folder, tmp_path):
    """The graphs do not depend on how many images are looked at together."""
    _, output = results
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    command = [
        *(sys.executable, "main.py", "--mode=predict", f"--checkpoint={workdir}", "--nopictures"),
        *(f"--output={tmp_path}", "--every=3", "--input", str(folder)),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    for mine, other in zip(lines_of(tmp_path), lines_of(output), strict=True):
        assert mine["image"] == other["image"]
        assert [t["predicate"] for t in mine["triplets"]] == [
            t["predicate"] for t in other["triplets"]
        ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["--checkpoint is missing", "--mode predict"]),
        (("--checkpoint=x", "--output=y"), ["--input is missing"]),
        (("--checkpoint=x", "--output={out}", "--input={in}"), ["--checkpoint", "x"]),
        (("--checkpoint=x.h5", "--output={out}", "--input={in}"), ["x.h5", "--config"]),
        (("--checkpoint={run}", "--output=y", "--input=nowhere/*.jpg"), ["nowhere/*.jpg"]),
        (("--checkpoint={run}", "--output=y", "--input={in}", "--every=0"), ["every"]),
        (("--checkpoint={run}", "--output=y", "--input={in}", "--boxes=no"), ["--boxes", "no"]),
        (("--checkpoint={run}", "--output=/proc/x", "--input={in}"), ["--output", "/proc/x"]),
        (
            ("--checkpoint={run}", "--output={out}", "--input={in}/notes.txt"),
            ["no file could be used"],
        ),
        (("--checkpoint={run}", "--output={out}", "--input={in}", "--port=1"), ["--port", "serve"]),
    ],
    ids=str,
)
def test_mistakes(workdir, folder, tmp_path, arguments, words):
    names = {"run": workdir, "in": folder, "out": tmp_path / "out"}
    done = run("--mode=predict", *(argument.format(**names) for argument in arguments))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in words), last
