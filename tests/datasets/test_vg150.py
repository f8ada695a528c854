"""VG150: tables of boxes at the 1024 scale, and photos whose listed sizes may be wrong."""

import json
import pathlib
import shutil

import h5py
import numpy as np
import pytest

from fnet_jax.datasets import create_builder, load_builder
from fnet_jax.datasets.split import Split
from fnet_jax.datasets.vg150 import tables
from fnet_jax.errors import UserError

DUMMY = pathlib.Path(__file__).parents[2] / "datasets" / "vg150" / "dummy_data"


def build(tmp_path, source=DUMMY):
    return load_builder("vg150", "", str(tmp_path / "data"), str(source))


@pytest.fixture(autouse=True)
def one_validation_image(monkeypatch):
    """The dummy data has three training images with relationships, not more than 5000."""
    monkeypatch.setattr(tables, "VALIDATION_IMAGES", 1)


@pytest.fixture
def source(tmp_path):
    """A writable copy of the dummy data."""
    return shutil.copytree(DUMMY, tmp_path / "source")


def change_table(source, name, change):
    """Replaces a table by `change` of it; None removes it."""
    with h5py.File(source / "VG-SGG.h5", "a") as file:
        values = np.asarray(file[name])
        del file[name]
        values = change(values)
        if values is not None:
            file[name] = values


def change_cell(source, name, index, value):
    def change(values):
        values[index] = value
        return values

    change_table(source, name, change)


def filenames(split):
    return [split.record(index)["filename"] for index in range(len(split))]


@pytest.mark.parametrize(
    ("box", "corners"),
    [
        ((13, 10, 6, 4), (10, 8, 16, 12)),
        ((13, 10, 7, 5), (9, 7, 16, 12)),
        # Towards 0, not down: -0.5 becomes 0.
        ((3, 2, 7, 5), (0, 0, 7, 5)),
    ],
)
def test_decode(box, corners):
    np.testing.assert_array_equal(tables.decode_boxes([box]), [corners])


def test_boxes_in_pixels():
    boxes = [(0, 0, 1024, 512), (256, 128, 512, 256), (-64, 900, 100, 1100)]
    # The longer side of 200 x 400 pixels is 1024 there: factor 400 / 1024.
    expected = [(0, 0, 399, 199), (100, 50, 200, 100), (0, 199, 39.0625, 199)]
    np.testing.assert_array_equal(tables.to_pixels(boxes, 200, 400), expected)
    flipped = [np.array(box)[[1, 0, 3, 2]] for box in boxes]
    expected = [np.array(box)[[1, 0, 3, 2]] for box in expected]
    np.testing.assert_array_equal(tables.to_pixels(flipped, 400, 200), expected)
    assert tables.to_pixels([], 10, 10).shape == (0, 4)


def test_records(tmp_path, capsys):
    builder = build(tmp_path)
    train, validation, test = (Split(builder, name) for name in ("train", "validation", "test"))
    assert train.object_classes == ("background", "building", "cat", "hat", "street")
    assert train.predicates == ("background", "behind", "on", "wearing")
    # Without relationships: 2, 4 and 8; 4 has no boxes either. 1592 has no row.
    assert filenames(validation) == ["1.jpg"]
    assert filenames(train) == ["3.jpg", "6.jpg"]
    assert filenames(test) == ["5.jpg"]

    # Stated as 100 x 100, but the photo has 48 x 64: its longer side counts.
    wrong = train.record(0)
    assert (wrong["height"], wrong["width"]) == (64, 48)
    assert train.image(0).shape == (64, 48, 3)
    scaled = np.array([[10, 8, 16, 12], [9, 7, 16, 12], [0, 0, 7, 5], [500, 850, 900, 1150]]) / 16
    scaled[3] = [31.25, 53.125, 47, 63]  # Clipped.
    np.testing.assert_array_equal(wrong["boxes"], scaled)
    np.testing.assert_array_equal(wrong["classes"], [3, 2, 4, 1])
    np.testing.assert_array_equal(
        wrong["relationships"], [[1, 0, 3], [1, 2, 2], [1, 0, 3], [1, 0, 2], [3, 3, 1]]
    )
    first = validation.record(0)
    np.testing.assert_array_equal(
        first["boxes"], np.array([[192, 44, 448, 556], [279, 16, 380, 106]]) / 16
    )
    np.testing.assert_array_equal(first["classes"], [2, 3])
    np.testing.assert_array_equal(first["relationships"], [[0, 1, 3]])
    np.testing.assert_array_equal(
        test.record(0)["boxes"], [[0, 0, 31, 23], [15, 8.375, 17, 10.375]]
    )
    # Repeated relationships are kept, in the test split too.
    np.testing.assert_array_equal(test.record(0)["relationships"], [[1, 0, 2], [1, 0, 2]])
    # Of the second folder of photos.
    assert train.image(1).shape == (40, 60, 3)

    assert builder.info.metadata["wrong_sizes"] == {
        "train": ["3.jpg"],
        "validation": [],
        "test": [],
    }
    assert train.skipped == []
    assert [name for name, _ in test.skipped] == ["7.jpg"]
    printed = capsys.readouterr().err
    assert "1 train photos have another size than the source states (3.jpg, ...)" in printed
    assert "skipped test photo 7.jpg: not in" in printed


def test_weights_and_triplets_are_those_of_training_alone(tmp_path):
    split = Split(build(tmp_path), "test")
    # 2 buildings, 2 cats, 1 hat, 1 street; behind twice, on twice, wearing twice.
    np.testing.assert_array_equal(split.object_weights, [1, 1, 1, 2, 2])
    np.testing.assert_array_equal(split.predicate_weights, [1, 1, 1, 1])
    assert build(tmp_path).info.metadata["triplets"] == [
        [1, 1, 1],
        [2, 1, 1],
        [2, 2, 3],
        [2, 2, 4],
        [2, 3, 3],
    ]


@pytest.mark.parametrize(
    ("count", "validation", "train"),
    [
        (0, [], ["1.jpg", "3.jpg", "6.jpg"]),
        (2, ["1.jpg", "3.jpg"], ["6.jpg"]),
        (5000, ["1.jpg", "3.jpg", "6.jpg"], []),
    ],
)
def test_validation_is_the_start_of_training(monkeypatch, count, validation, train):
    monkeypatch.setattr(tables, "VALIDATION_IMAGES", count)
    builder = create_builder("vg150", "")
    for split, expected in (("validation", validation), ("train", train)):
        images = builder.annotations(DUMMY, split)
        assert [image.filename for image in images] == expected


def test_validation_has_5000_images(monkeypatch):
    monkeypatch.undo()
    assert tables.VALIDATION_IMAGES == 5000


def test_the_four_corrupt_images_have_no_row(tmp_path):
    listed = [{"image_id": number, "width": 4, "height": 3} for number in range(1590, 4620)]
    path = tmp_path / "image_data.json"
    path.write_text(json.dumps(listed))
    images = tables.read_images(path)
    missing = set(range(1590, 4620)) - {number for number, _, _ in images}
    assert missing == {1592, 1722, 4616, 4617}
    assert images[:3] == [(1590, 3, 4), (1591, 3, 4), (1593, 3, 4)]


def test_files_with_attributes(tmp_path, source):
    expected = Split(build(tmp_path / "a", source), "train").record(0)
    (source / "VG-SGG.h5").rename(source / "VG-SGG-with-attri.h5")
    (source / "VG-SGG-dicts.json").rename(source / "VG-SGG-dicts-with-attri.json")
    found = Split(build(tmp_path / "b", source), "train").record(0)
    np.testing.assert_array_equal(found["boxes"], expected["boxes"])


def test_missing_files_are_named(tmp_path, source):
    (source / "VG-SGG.h5").rename(source / "VG.h5")
    (source / "image_data.json").rename(source / "images.json")
    message = r"vg150 lacks .*source/VG-SGG\.h5, .*source/image_data\.json; add it"
    with pytest.raises(UserError, match=message):
        build(tmp_path, source)
    (source / "VG.h5").rename(source / "VG-SGG.h5")
    (source / "images.json").rename(source / "image_data.json")
    shutil.rmtree(source / "VG_100K_2")
    (source / "VG_100K").rename(source / "photos")
    with pytest.raises(UserError, match=r"no train photos: put them in .*source/VG_100K"):
        build(tmp_path, source)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("labels", lambda values: None, r"has no table 'labels'"),
        ("labels", lambda values: values[:-1], r"in 'boxes_1024' as in 'labels'"),
        ("labels", lambda values: values[:, 0], r"'labels' that is not whole numbers in 2-d"),
        ("boxes_1024", lambda values: values / 2, r"'boxes_1024' that is not whole numbers"),
        ("boxes_1024", lambda values: values[:, :3], r"not as many rows of four"),
        ("predicates", lambda values: values[1:], r"not as many rows of two in 'relationships'"),
        ("split", lambda values: values[1:], r"has 7 images in 'split', but image_data\.json"),
        ("img_to_last_rel", lambda values: values[1:], r"has 7 images in 'img_to_last_rel', but"),
        ("img_to_last_box", lambda values: values + 1, r"refers to rows that do not exist"),
        ("img_to_last_rel", lambda values: values - 9, r"refers to rows that do not exist"),
    ],
)
def test_wrong_tables_are_named(tmp_path, source, name, change, message):
    change_table(source, name, change)
    with pytest.raises(UserError, match=r"source/VG-SGG\.h5 .*" + message):
        build(tmp_path, source)


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("labels", (3, 0), 5, r"object 0 has class 5, but the classes are 1 to 4"),
        ("labels", (4, 0), 0, r"object 1 has class 0"),
        ("predicates", (1, 0), 4, r"predicate 4 is unknown"),
        # A box of the image before, and one of the next.
        ("relationships", (1, 0), 2, r"relationship \(-1, 0\) names an object that is not there"),
        ("relationships", (1, 1), 7, r"relationship \(1, 4\) names an object that is not there"),
        ("boxes_1024", (3, 2), -9, r"object 0 has the box \[1\.0625, 0\.5, 0\.5, 0\.75\]"),
    ],
)
def test_faults_name_the_image(tmp_path, source, name, index, value, message):
    change_cell(source, name, index, value)
    with pytest.raises(UserError, match=r"annotation of image '3\.jpg': .*" + message):
        build(tmp_path, source)


def test_no_hdf5_file(tmp_path, source):
    path = source / "VG-SGG.h5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"source/VG-SGG\.h5 cannot be read as HDF5"):
        build(tmp_path, source)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"image_data\.json must be a list of images"),
        ([{"image_id": 1, "width": 4}], r"image_data\.json: image 0 needs .*\('height'\)"),
        (
            [{"image_id": 1, "width": 4, "height": 3.5}],
            r"image_data\.json: image 0 needs whole numbers",
        ),
    ],
)
def test_wrong_image_list_is_named(tmp_path, source, content, message):
    (source / "image_data.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        build(tmp_path, source)


@pytest.mark.parametrize(
    "numbers", [None, ["hat"], {"a": 1, "b": 3}, {"a": 0, "b": 1}, {"a": 1, "b": 1}, {"a": "1"}]
)
@pytest.mark.parametrize("key", ["label_to_idx", "predicate_to_idx"])
def test_wrong_dictionaries_are_named(tmp_path, source, key, numbers):
    path = source / "VG-SGG-dicts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: numbers}))
    with pytest.raises(UserError, match=rf"source/VG-SGG-dicts\.json: '{key}' must give each name"):
        build(tmp_path, source)
