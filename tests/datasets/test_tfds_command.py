"""TFDS' own build command, as the READMEs of the datasets give it, without TensorFlow."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from fnet_jax.datasets import load_builder
from fnet_jax.datasets.split import Split

REPOSITORY = pathlib.Path(__file__).parents[2]
# 5000 validation images are more than there are.
BEFORE = "from fnet_jax.datasets.vg150 import tables; tables.VALIDATION_IMAGES = 1; "
AFTER = "; import sys; assert 'tensorflow' not in sys.modules"


def run(name, source, data):
    """Runs the command in the README of a dataset."""
    readme = (REPOSITORY / "datasets" / name / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```\n(python -c .*?)```", readme, re.DOTALL)
    # As a shell joins lines, in quotes too.
    python, flag, code, *arguments = shlex.split(command.replace("\\\n", ""))
    assert (python, flag) == ("python", "-c")
    places = {"FOLDER": str(source), "DATA": str(data)}
    arguments = [places.get(argument, argument) for argument in arguments]
    return subprocess.run(
        [sys.executable, "-c", BEFORE + code + AFTER, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
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
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert "UserError: " in last
    assert f"{tmp_path}/psg.json" in last
    assert not list(tmp_path.rglob("dataset_info.json"))
