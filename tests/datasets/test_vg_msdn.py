"""VG-MSDN: classes by name, three variants, described regions."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from fnet_jax.datasets import load_builder
from fnet_jax.datasets.split import Split
from fnet_jax.errors import UserError

DUMMY = pathlib.Path(__file__).parents[2] / "datasets" / "vg_msdn" / "dummy_data"


def build(tmp_path, source=DUMMY, variant=""):
    return load_builder("vg_msdn", variant, str(tmp_path / "data"), str(source))


@pytest.fixture
def source(tmp_path):
    """A writable copy of the dummy data."""
    return shutil.copytree(DUMMY, tmp_path / "source")


def filenames(split):
    return [split.record(index)["filename"] for index in range(len(split))]


def change_json(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content))


def test_records(tmp_path, capsys):
    builder = build(tmp_path)
    train, test = Split(builder, "train"), Split(builder, "test")
    assert train.object_classes == ("background", "man", "dog", "ball", "tree")
    assert train.predicates == ("background", "holds", "near", "under")
    assert filenames(train) == ["101.jpg", "102.jpg"]
    assert filenames(test) == ["201.jpg"]

    walk = train.record(0)
    assert (walk["height"], walk["width"]) == (44, 48)
    assert train.image(0).shape == (44, 48, 3)
    np.testing.assert_array_equal(
        walk["boxes"], [[4, 6, 20, 40], [22, 24, 44, 41], [14, 18, 19, 23]]
    )
    np.testing.assert_array_equal(walk["classes"], [1, 2, 3])
    # Repeated, and two predicates of a pair: all are kept, in order.
    np.testing.assert_array_equal(
        walk["relationships"], [[0, 2, 1], [1, 0, 2], [1, 0, 2], [1, 0, 3]]
    )
    np.testing.assert_array_equal(walk["region_boxes"], [[2, 4, 46, 42], [22, 24, 44, 41]])
    assert walk["region_phrases"] == ["a man with a ball", "dog near a café"]

    tree = train.record(1)
    np.testing.assert_array_equal(tree["classes"], [4])
    assert tree["relationships"].shape == (0, 3)
    assert tree["region_boxes"].shape == (0, 4)
    assert tree["region_phrases"] == []

    # A box may have fractions.
    np.testing.assert_array_equal(test.record(0)["boxes"][1], [26.5, 30, 41, 52])

    assert [name for name, _ in train.skipped] == ["103.jpg"]
    assert [name for name, _ in test.skipped] == ["202.jpg"]
    printed = capsys.readouterr().err
    assert "skipped train photo 103.jpg: not in" in printed
    assert "skipped test photo 202.jpg: " in printed


def test_weights_go_by_name_and_over_their_minimum(tmp_path):
    split = Split(build(tmp_path), "train")
    np.testing.assert_array_equal(split.object_weights, [1, 1, 2, 2.5, 4])
    np.testing.assert_array_equal(split.predicate_weights, [1, 4, 1, 2])


def test_weights_are_counted_without_a_file(tmp_path, source):
    (source / "inverse_weight.json").unlink()
    split = Split(build(tmp_path, source), "train")
    np.testing.assert_array_equal(split.object_weights, [1, 1, 1, 1, 1])
    np.testing.assert_array_equal(split.predicate_weights, [1, 2, 1, 2])  # 1, 2 and 1 times.


def test_variants(tmp_path):
    small, fat = build(tmp_path, variant="small"), build(tmp_path, variant="fat")
    assert filenames(Split(small, "train")) == ["101.jpg"]
    assert filenames(Split(fat, "train")) == ["102.jpg", "101.jpg"]
    np.testing.assert_array_equal(Split(fat, "train").record(0)["relationships"], [[0, 0, 2]])
    assert not any(small.info.metadata["skipped"].values())
    # Without a name it is the published one, and each has its own place.
    assert build(tmp_path).data_dir == build(tmp_path, variant="normal").data_dir
    assert len({builder.data_dir for builder in (small, fat, build(tmp_path))}) == 3
    with pytest.raises(UserError, match=r"'huge' is unknown .*; known: fat, normal, small"):
        build(tmp_path, variant="huge")


def test_a_variant_needs_only_its_own_files(tmp_path, source):
    (source / "train_fat.json").unlink()
    assert len(Split(build(tmp_path, source), "train")) == 2
    with pytest.raises(UserError, match=r"vg_msdn lacks .*source/train_fat\.json; add it"):
        build(tmp_path, source, "fat")
    (source / "categories.json").unlink()
    with pytest.raises(UserError, match=r"vg_msdn lacks .*source/categories\.json; add it"):
        build(tmp_path, source, "small")


def test_folder_without_photos(tmp_path, source):
    (source / "images").rename(source / "photos")
    with pytest.raises(UserError, match=r"no train photos: put them in .*source/images"):
        build(tmp_path, source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image["objects"][0].pop("box"), r"'101\.jpg'.*KeyError: 'box'"),
        (lambda image: image["objects"][0].update({"class": "cat"}), r"'101\.jpg'.*class 'cat'"),
        # The background is no class that could be annotated.
        (
            lambda image: image["objects"][0].update({"class": "background"}),
            r"'101\.jpg'.*class 'background' is not in categories\.json",
        ),
        (
            lambda image: image["relationships"][0].update(predicate="eats"),
            r"'101\.jpg'.*predicate 'eats' is not in categories\.json",
        ),
        (lambda image: image["relationships"][0].update(predicate=1), r"'101\.jpg'.*is 1"),
        (lambda image: image["regions"][0].update(phrase=["a", 1]), r"'101\.jpg'.*str"),
        (lambda image: image["regions"][0].update(box=[0, 0, 9]), r"'101\.jpg'.*is no box"),
        (lambda image: image.update(regions=None), r"'101\.jpg'.*TypeError"),
        (lambda image: image.pop("objects"), r"'101\.jpg'.*KeyError: 'objects'"),
        (lambda image: image.pop("path"), r"'number 0'.*KeyError: 'path'"),
    ],
)
def test_wrong_annotations_name_file_and_image(tmp_path, source, change, message):
    change_json(source / "train.json", lambda images: change(images[0]))
    with pytest.raises(UserError, match=r"source/train\.json: annotation of image " + message):
        build(tmp_path, source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image["relationships"][0].update(obj_id=3), r"\(0, 3\) names an object"),
        (lambda image: image["relationships"][0].update(sub_id=-1), r"\(-1, 2\) names an object"),
        (lambda image: image["objects"][1].update(box=[9, 0, 3, 3]), r"object 1 has the box \[9,"),
    ],
)
def test_faults_name_the_image(tmp_path, source, change, message):
    change_json(source / "train.json", lambda images: change(images[0]))
    with pytest.raises(UserError, match=r"annotation of image '101\.jpg': .*" + message):
        build(tmp_path, source)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold the lists 'object' and 'predicate'"),
        ({"predicate": ["on"]}, "'object' must be a list of class names"),
        ({"object": ["a"], "predicate": []}, "'predicate' must be a list of class names"),
        ({"object": ["a", "b", "a"], "predicate": ["on"]}, "'object' lists 'a' twice"),
    ],
)
def test_wrong_categories_are_named(tmp_path, source, content, message):
    (source / "categories.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"source/categories\.json.*" + message):
        build(tmp_path, source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights["object"].pop("ball"), "'ball' is missing"),
        (lambda weights: weights["predicate"].update(near=0), "one is not"),
        (lambda weights: weights["predicate"].update(near="2"), "one is not"),
        (lambda weights: weights["predicate"].update(near=float("nan")), "one is not"),
        (lambda weights: weights["object"].update(dog=1e-320), "one is not"),
        (lambda weights: weights.pop("predicate"), "'holds' is missing"),
    ],
)
def test_wrong_weights_are_named(tmp_path, source, change, message):
    change_json(source / "inverse_weight.json", change)
    with pytest.raises(UserError, match=r"inverse_weight\.json: .*positive weight, but " + message):
        build(tmp_path, source)
