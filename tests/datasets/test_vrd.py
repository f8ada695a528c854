"""Both forms of VRD, with the oddities of the real files."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fnet_jax.datasets import load_builder
from fnet_jax.datasets.vrd.annotations import parse_converted, parse_official
from fnet_jax.errors import UserError
from fnet_jax.input_pipeline import Split, eval_batches

REPOSITORY = pathlib.Path(__file__).parents[2]
DUMMY = REPOSITORY / "datasets" / "vrd" / "dummy_data"
SHARED = pathlib.Path(os.environ.get("FNET_SHARED", REPOSITORY.parent / "shared"))


def build(tmp_path, source):
    return load_builder("vrd", "", str(tmp_path / "data"), str(source))


@pytest.fixture
def source(tmp_path):
    """A writable copy of the official form."""
    return shutil.copytree(DUMMY / "official", tmp_path / "official")


def test_official_form(tmp_path, capsys):
    builder = build(tmp_path, DUMMY / "official")
    train, test = Split(builder, "train"), Split(builder, "test")
    assert train.object_classes == ("background", "person", "horse", "hat")
    assert train.predicates == ("background", "on", "wear", "near")

    names = [train.record(index)["filename"] for index in range(len(train))]
    assert names == ["rider.jpg", "empty.jpg", "animated.jpg", "screenshot.jpg"]
    rider = train.record(0)
    np.testing.assert_array_equal(
        rider["boxes"], [[10, 2, 28, 24], [4, 14, 50, 34], [12, 0, 20, 6]]
    )
    assert rider["width"] == 48, "the second box ends past the edge"
    np.testing.assert_array_equal(rider["classes"], [1, 2, 3])
    # Repeated, two predicates of a pair, and the horse with itself: all are kept, in order.
    np.testing.assert_array_equal(
        rider["relationships"], [[0, 1, 1], [0, 2, 2], [0, 1, 1], [0, 1, 3], [1, 1, 3]]
    )
    empty = train.record(1)
    assert empty["boxes"].shape == (0, 4)
    assert empty["relationships"].shape == (0, 3)
    # animated.jpg is a GIF under its own ending, screenshot.jpg a PNG under another.
    assert train.image(2).shape == (44, 52, 3)
    assert train.image(3).shape == (42, 50, 3)

    assert [name for name, _ in train.skipped] == ["missing.jpg"]
    assert [name for name, _ in test.skipped] == ["broken.jpg"]
    printed = capsys.readouterr().err
    assert "missing.jpg" in printed
    assert "broken.jpg" in printed
    assert train.max_objects == 3
    # Three kinds of objects: 2 persons, 3 horses, 2 hats on the photos that could be stored.
    np.testing.assert_allclose(train.object_weights, [1, 3 / 2, 1, 3 / 2])


def test_converted_form_says_the_same(tmp_path):
    official = Split(build(tmp_path / "a", DUMMY / "official"), "train")
    converted = Split(build(tmp_path / "b", DUMMY / "converted"), "train")
    assert len(converted) == 2
    for index in range(2):
        expected, found = official.record(index), converted.record(index)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)
    np.testing.assert_array_equal(converted.object_weights, [1, 1, 2.5, 4])
    np.testing.assert_array_equal(converted.predicate_weights, [0.5, 1, 3, 2])


def test_converted_form_without_weights_counts_them(tmp_path):
    source = shutil.copytree(DUMMY / "converted", tmp_path / "converted")
    (source / "inverse_weight.json").unlink()
    split = Split(build(tmp_path, source), "train")
    np.testing.assert_array_equal(split.predicate_weights, [1, 1, 2, 1])  # 2, 1 and 2 times.


def test_photos_may_lie_in_one_folder(tmp_path, source):
    photos = source / "sg_dataset"
    for folder in list(photos.iterdir()):
        for photo in folder.iterdir():
            photo.rename(photos / photo.name)
        folder.rmdir()
    assert len(Split(build(tmp_path, source), "train")) == 4


def test_a_built_dataset_needs_no_source(tmp_path, source):
    before = Split(build(tmp_path, source), "train").record(0)
    shutil.rmtree(source)
    for manual_dir in ("", source):
        after = Split(build(tmp_path, manual_dir), "train").record(0)
        np.testing.assert_array_equal(after["boxes"], before["boxes"])


def test_another_source_is_not_mistaken_for_the_built_one(tmp_path, source):
    build(tmp_path, source)
    build(tmp_path, source)
    with pytest.raises(UserError, match=r"was built from other files"):
        build(tmp_path, DUMMY / "converted")


def test_missing_files_are_named(tmp_path, source):
    with pytest.raises(UserError, match=r"dataset\.manual_dir.*annotations_train"):
        build(tmp_path, "")
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        build(tmp_path, tmp_path / "nowhere")
    (source / "json_dataset" / "objects.json").rename(source / "objects.json")
    with pytest.raises(UserError, match=r"lacks .*json_dataset/objects\.json"):
        build(tmp_path, source)
    (source / "objects.json").rename(source / "json_dataset" / "objects.json")
    (source / "sg_dataset").rename(source / "photos")
    with pytest.raises(UserError, match=r"no train photos: put them in .*sg_train_images"):
        build(tmp_path, source)
    assert not (tmp_path / "data").exists(), "a refused build leaves nothing behind"


def test_no_photo_at_all_is_an_error(tmp_path, source):
    for photo in (source / "sg_dataset" / "sg_test_images").iterdir():
        photo.unlink()
    with pytest.raises(UserError, match=r"split test: none of the 2 annotated photos"):
        build(tmp_path, source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry["subject"].pop("bbox"), r"rider\.jpg.*KeyError: 'bbox'"),
        (lambda entry: entry.update(predicate=9), r"rider\.jpg.*predicate 10 is unknown"),
        (lambda entry: entry["object"].update(category=3), r"rider\.jpg.*class 4"),
        (lambda entry: entry["object"].update(bbox=[9, 4, 0, 3]), r"rider\.jpg.*box \[0"),
    ],
)
def test_wrong_annotations_are_named(tmp_path, source, change, message):
    path = source / "json_dataset" / "annotations_train.json"
    content = json.loads(path.read_text())
    change(content["rider.jpg"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        build(tmp_path, source)


def test_truncated_json_is_named(tmp_path, source):
    path = source / "json_dataset" / "annotations_test.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match=r"annotations_test\.json is not valid JSON"):
        build(tmp_path, source)


def test_converted_relationship_to_a_missing_object(tmp_path):
    source = shutil.copytree(DUMMY / "converted", tmp_path / "converted")
    images = json.loads((source / "train.json").read_text())
    images[0]["relationships"][0]["obj_id"] = -1
    (source / "train.json").write_text(json.dumps(images))
    assert parse_converted(images)[0].relationships[0] == (0, -1, 1)
    with pytest.raises(UserError, match=r"rider\.jpg.*\(0, -1\) names an object that is not there"):
        build(tmp_path, source)


@pytest.mark.skipif(not (SHARED / "data" / "vrd").is_dir(), reason=f"no annotations in {SHARED}")
@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", (4000, 3780, 30355, 29861, 26964)), ("test", (1000, 955, 7638, 7478, 6806))],
)
def test_counts_of_the_real_annotations(split, expected):
    path = SHARED / "data" / "vrd" / f"annotations_{split}.json"
    images = parse_official(json.loads(path.read_text()))
    relationships = [image.relationships for image in images]
    assert expected == (
        len(images),
        sum(bool(triples) for triples in relationships),
        sum(len(triples) for triples in relationships),
        sum(len(set(triples)) for triples in relationships),
        sum(len({triple[:2] for triple in triples}) for triples in relationships),
    )


@pytest.mark.skipif(
    not (SHARED / "tools" / "render_vrd.py").is_file(), reason=f"no renderer in {SHARED}"
)
def test_real_annotations_from_files_to_batches(tmp_path):
    command = [sys.executable, str(SHARED / "tools" / "render_vrd.py"), str(tmp_path / "vrd")]
    subprocess.run([*command, "--limit", "30", "--max-side", "200"], check=True)
    split = Split(build(tmp_path, tmp_path / "vrd"), "test")
    assert (len(split), len(split.object_classes), len(split.predicates)) == (30, 101, 71)
    batches = list(
        eval_batches(
            split,
            batch_size=1,
            scale=120,
            max_size=200,
            buckets=((128, 208), (208, 128), (160, 160)),
            color_order="bgr",
        )
    )
    assert [batch["image_index"][0] for batch in batches] == list(range(30))
    content = json.loads((tmp_path / "vrd/json_dataset/annotations_test.json").read_text())
    for batch, entries in zip(batches, content.values(), strict=True):
        pairs = {
            tuple((role["category"], *role["bbox"]) for role in (e["subject"], e["object"]))
            for e in entries
        }
        assert (batch["gt_relationships"] > 0).sum() == len(pairs)
