"""Panoptic scene graphs: one file with both splits, all numbers from 0."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from fnet_jax.datasets import load_builder
from fnet_jax.datasets.split import Split
from fnet_jax.errors import UserError

DUMMY = pathlib.Path(__file__).parents[2] / "datasets" / "psg" / "dummy_data"


def build(tmp_path, source=DUMMY):
    return load_builder("psg", "", str(tmp_path / "data"), str(source))


@pytest.fixture
def source(tmp_path):
    """A writable copy of the dummy data."""
    return shutil.copytree(DUMMY, tmp_path / "source")


def change_json(source, change):
    content = json.loads((source / "psg.json").read_text())
    change(content)
    (source / "psg.json").write_text(json.dumps(content))


def filenames(split):
    return [split.record(index)["filename"] for index in range(len(split))]


def test_records(tmp_path, capsys):
    builder = build(tmp_path)
    train, test = Split(builder, "train"), Split(builder, "test")
    assert train.object_classes == ("background", "person", "dog", "sky", "grass")
    assert train.predicates == ("background", "over", "beside", "standing on")
    # 30 and 42 have no relations; 25, 42 and 49 are the test images.
    assert filenames(train) == ["train2017/000000000009.jpg", "train2017/000000000034.jpg"]
    assert filenames(test) == ["train2017/000000000025.jpg"]

    first = train.record(0)
    assert (first["height"], first["width"]) == (40, 48)
    np.testing.assert_array_equal(
        first["boxes"], [[4, 6, 18, 34], [20, 20, 40, 36], [0, 28, 47, 39]]
    )
    np.testing.assert_array_equal(first["classes"], [1, 2, 4])
    # Repeated relations stay in training and go in the test split.
    np.testing.assert_array_equal(
        first["relationships"], [[0, 1, 2], [0, 2, 3], [0, 1, 2], [1, 2, 3], [1, 2, 2]]
    )
    np.testing.assert_array_equal(test.record(0)["classes"], [3, 2])
    np.testing.assert_array_equal(test.record(0)["relationships"], [[0, 1, 1], [1, 1, 2]])

    # The photo counts, not the size in the file.
    assert train.record(1)["height"] == 52
    assert train.image(1).shape == (52, 44, 3)
    assert builder.info.metadata["wrong_sizes"] == {
        "train": ["train2017/000000000034.jpg"],
        "test": [],
    }
    assert [name for name, _ in train.skipped] == ["train2017/000000000036.jpg"]
    assert [name for name, _ in test.skipped] == ["train2017/000000000049.jpg"]
    printed = capsys.readouterr().err
    assert "1 train photos have another size" in printed
    assert "(train2017/000000000034.jpg, ...)" in printed
    assert "skipped train photo train2017/000000000036.jpg: not in" in printed
    assert "skipped test photo train2017/000000000049.jpg: not in" in printed


def test_weights_are_counted(tmp_path):
    split = Split(build(tmp_path), "train")
    # 2 persons, 1 dog, 1 sky, 1 grass; over once, beside three times, standing on twice.
    np.testing.assert_allclose(split.object_weights, [1, 1, 2, 2, 2])
    np.testing.assert_allclose(split.predicate_weights, [1, 3, 1, 1.5])


def test_ids_may_be_numbers(tmp_path, source):
    change_json(source, lambda content: content.update(test_image_ids=[25, 42, 49]))
    assert filenames(Split(build(tmp_path, source), "test")) == ["train2017/000000000025.jpg"]


def test_photos_may_lie_beside_the_file(tmp_path, source):
    (source / "coco" / "train2017").rename(source / "train2017")
    assert len(Split(build(tmp_path, source), "train")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.pop("image_id"), r"KeyError: 'image_id'"),
        (lambda image: image.update(height="40"), r"'height' is '40'"),
        (lambda image: image["annotations"][0].pop("bbox"), r"KeyError: 'bbox'"),
        (lambda image: image["annotations"][0].update(bbox=[1, 2, 3]), r"is no box"),
        (lambda image: image["annotations"][0].update(category_id=True), r"'category_id' is True"),
        (lambda image: image.update(relations=[[0, 1]]), r"is no \[subject, object, predicate\]"),
        (lambda image: image.update(relations=[[0, 1, 2.0]]), r"is no \[subject, object, pred"),
        (lambda image: image.update(relations=[[0, True, 2]]), r"is no \[subject, object, pred"),
    ],
)
def test_wrong_form_names_file_and_image(tmp_path, source, change, message):
    change_json(source, lambda content: change(content["data"][0]))
    where = r"source/psg\.json: annotation of image 'train2017/000000000009\.jpg' .*"
    with pytest.raises(UserError, match=where + message):
        build(tmp_path, source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image["annotations"][0].update(category_id=4), r"class 5, but .* 1 to 4"),
        (lambda image: image["annotations"][0].update(category_id=-1), r"class 0, but .* 1 to 4"),
        (lambda image: image["relations"].append([0, 1, 3]), r"predicate 4 is unknown"),
        (lambda image: image["relations"].append([0, 3, 1]), r"\(0, 3\) names an object that"),
        (lambda image: image["annotations"][0].update(bbox=[5, 0, 4, 1]), r"object 0 .* box \[5"),
    ],
)
def test_faults_name_the_image(tmp_path, source, change, message):
    change_json(source, lambda content: change(content["data"][0]))
    where = r"annotation of image 'train2017/000000000009\.jpg': .*"
    with pytest.raises(UserError, match=where + message):
        build(tmp_path, source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("data"), r"data and test_image_ids must be lists"),
        (lambda content: content.pop("test_image_ids"), r"data and test_image_ids must be lists"),
        (lambda content: content.pop("stuff_classes"), r"thing_classes and stuff_classes must be"),
        (lambda content: content.pop("predicate_classes"), r"predicate_classes must be a list"),
        (lambda content: content["stuff_classes"].append("dog"), r"lists 'dog' twice"),
    ],
)
def test_wrong_file_is_named(tmp_path, source, change, message):
    change_json(source, change)
    with pytest.raises(UserError, match=r"source/psg\.json: .*" + message):
        build(tmp_path, source)


def test_missing_file_is_named(tmp_path, source):
    (source / "psg.json").unlink()
    with pytest.raises(UserError, match=r"psg lacks .*source/psg\.json; add it"):
        build(tmp_path, source)
    (source / "psg.json").write_text("[]")
    with pytest.raises(UserError, match=r"source/psg\.json must hold data, classes and test_image"):
        build(tmp_path, source)
