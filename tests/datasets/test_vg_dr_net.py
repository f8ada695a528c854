"""VG-DR-Net: the converted form of VRD under names of its own."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from fnet_jax.datasets import load_builder
from fnet_jax.datasets.split import Split
from fnet_jax.errors import UserError

DUMMY = pathlib.Path(__file__).parents[2] / "datasets" / "vg_dr_net" / "dummy_data"


def build(tmp_path, source=DUMMY, variant=""):
    return load_builder("vg_dr_net", variant, str(tmp_path / "data"), str(source))


@pytest.fixture
def source(tmp_path):
    """A writable copy of the dummy data."""
    return shutil.copytree(DUMMY, tmp_path / "source")


def test_records(tmp_path, capsys):
    builder = build(tmp_path)
    train, test = Split(builder, "train"), Split(builder, "test")
    assert train.object_classes == ("background", "woman", "bike", "helmet")
    assert train.predicates == ("background", "rides", "wears")
    assert (len(train), len(test)) == (2, 1)

    ride = train.record(0)
    assert ride["filename"] == "11.jpg"
    assert (ride["height"], ride["width"]) == (42, 46)
    np.testing.assert_array_equal(ride["boxes"], [[10, 3, 30, 30], [6, 16, 42, 39], [15, 3, 24, 9]])
    np.testing.assert_array_equal(ride["classes"], [1, 2, 3])
    np.testing.assert_array_equal(ride["relationships"], [[0, 1, 1], [0, 2, 2], [0, 1, 1]])
    assert ride["region_phrases"] == []
    bare = train.record(1)
    assert bare["filename"] == "12.jpg"
    assert bare["boxes"].shape == (0, 4)
    assert bare["relationships"].shape == (0, 3)
    one = test.record(0)
    np.testing.assert_array_equal(one["classes"], [3, 1])
    np.testing.assert_array_equal(one["relationships"], [[1, 0, 2]])

    assert [name for name, _ in train.skipped] == ["13.jpg"]
    assert [name for name, _ in test.skipped] == ["22.jpg"]
    printed = capsys.readouterr().err
    assert "skipped train photo 13.jpg: not in" in printed
    assert "skipped test photo 22.jpg: " in printed
    assert "22.jpg is no image" in printed


def test_weights_are_listed_background_first(tmp_path, source):
    split = Split(build(tmp_path / "a", source), "train")
    np.testing.assert_array_equal(split.object_weights, [1, 1.5, 3, 1])
    np.testing.assert_array_equal(split.predicate_weights, [0.25, 2, 1])
    (source / "inverse_weight.json").unlink()
    counted = Split(build(tmp_path / "b", source), "train")
    np.testing.assert_array_equal(counted.object_weights, [1, 1, 1, 1])
    np.testing.assert_array_equal(counted.predicate_weights, [1, 1, 2])  # 2 and 1 times.


def test_the_option_is_named_normal(tmp_path):
    assert build(tmp_path, variant="normal").data_dir == build(tmp_path).data_dir
    with pytest.raises(UserError, match=r"'small' is unknown for vg_dr_net; known: normal"):
        build(tmp_path, variant="small")


def test_missing_files_are_named(tmp_path, source):
    (source / "train_normal.json").rename(source / "train.json")
    (source / "predicates.json").unlink()
    message = r"vg_dr_net lacks .*source/train_normal\.json, .*source/predicates\.json; add it"
    with pytest.raises(UserError, match=message):
        build(tmp_path, source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda image: image["objects"][0].update({"class": "woman"}),
            r"train_normal\.json: annotation of image '11\.jpg'.*'class' is 'woman'",
        ),
        (
            lambda image: image["objects"][0].update({"class": True}),
            r"train_normal\.json: annotation of image '11\.jpg'.*'class' is True",
        ),
        (
            lambda image: image.pop("relationships"),
            r"train_normal\.json: annotation of image .*KeyError: 'relationships'",
        ),
        (lambda image: image["objects"][0].update({"class": 0}), r"'11\.jpg': .*class 0, but"),
        (lambda image: image["objects"][0].update({"class": 4}), r"'11\.jpg': .*1 to 3"),
        (lambda image: image["relationships"][0].update(predicate=3), r"'11\.jpg': .*1 to 2"),
    ],
)
def test_wrong_annotations_are_named(tmp_path, source, change, message):
    path = source / "train_normal.json"
    images = json.loads(path.read_text())
    change(images[0])
    path.write_text(json.dumps(images))
    with pytest.raises(UserError, match=message):
        build(tmp_path, source)


@pytest.mark.parametrize("weights", [[1, 2], [1, 2, 3, -1], [1, 2, 3, "4"], [1, 2, 3, True], {}])
def test_wrong_weights_are_named(tmp_path, source, weights):
    content = {"object": weights, "predicate": [1, 2, 1]}
    (source / "inverse_weight.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"inverse_weight\.json: 'object' must be a list of 4"):
        build(tmp_path, source)
