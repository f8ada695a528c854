"""TFDS' own build command, as the READMEs of the datasets give it, without TensorFlow."""

import pathlib
import re
import subprocess
import sys

import pytest

from fnet_jax.datasets import load_builder
from fnet_jax.datasets.split import Split

REPOSITORY = pathlib.Path(__file__).parents[2]
PROGRAM = """
import sys
from fnet_jax.datasets import build
from fnet_jax.datasets.vg150 import tables
tables.VALIDATION_IMAGES = 1  # 5000 are more than there are.
status = build.main(sys.argv[1:])
assert "tensorflow" not in sys.modules
sys.exit(status)
"""


def run(name, source, data):
    """Runs the command in the README of a dataset."""
    readme = (REPOSITORY / "datasets" / name / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```\npython -m fnet_jax\.datasets\.build (.*?)\n```", readme)
    places = {"FOLDER": str(source), "DATA": str(data)}
    arguments = [places.get(argument, argument) for argument in command.split()]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=REPOSITORY, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("vrd", ["rider.jpg", "empty.jpg", "animated.jpg", "screenshot.jpg"], ["one.jpg"]),
        ("vg_msdn", ["101.jpg", "102.jpg"], ["201.jpg"]),
        ("vg_dr_net", ["11.jpg", "12.jpg"], ["21.jpg"]),
        ("vg150", ["3.jpg", "6.jpg"], ["5.jpg"]),
        (
            "psg",
            ["train2017/000000000009.jpg", "train2017/000000000034.jpg"],
            ["train2017/000000000025.jpg"],
        ),
    ],
)
def test_the_command_of_the_readme_builds(tmp_path, capsys, name, train, test):
    source = REPOSITORY / "datasets" / name / "dummy_data"
    if name == "vrd":
        source = source / "official"
    done = run(name, source, tmp_path)
    assert done.returncode == 0, done.stderr
    # The program takes that build for its own.
    builder = load_builder(name, "", str(tmp_path), str(source))
    assert "building" not in capsys.readouterr().err
    assert Split(builder, "train").filenames == train
    assert Split(builder, "test").filenames == test
    assert Split(builder, "test").record(0)["filename"] == test[0]


def test_the_command_says_what_is_missing(tmp_path):
    done = run("psg", tmp_path, tmp_path / "data")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: psg lacks ") and f"{tmp_path}/psg.json" in last
    assert not list(tmp_path.rglob("dataset_info.json"))
