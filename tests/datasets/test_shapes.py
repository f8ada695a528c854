"""The drawn scenes: reproducible, well-formed, and annotated as the stated rules say."""

import collections

import cv2
import numpy as np
import pytest

from fnet_jax.datasets import load_builder
from fnet_jax.datasets.shapes import Shapes, drawing, scene
from fnet_jax.errors import UserError
from fnet_jax.input_pipeline import Split


@pytest.fixture(scope="module")
def scenes():
    return [scene.draw(np.random.default_rng([7, index])) for index in range(60)]


def item(name, centre, side):
    """One upright shape on a canvas of 128 x 160."""
    curves = drawing.place(name, centre, side, 1.0, 0.0)
    painted = drawing.occupied(curves, 128, 160)
    silhouette = drawing.occupied(curves[:1], 128, 160)
    label = scene.OBJECT_CLASSES.index(name) + 1
    return scene.Item(label, curves, painted, silhouette)


def relations(*items):
    return {(s, o): scene.PREDICATES[p - 1] for s, o, p in scene.relate(list(items))}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (("circle", (40, 60), 40), ("star", (85, 64), 40), "beside"),
        (("circle", (60, 30), 40), ("star", (64, 75), 40), "above"),
        (("circle", (40, 60), 60), ("circle", (95, 60), 40), "larger than"),
        (("circle", (40, 60), 44), ("circle", (88, 60), 40), "beside"),
        (("circle", (60, 60), 70), ("star", (60, 60), 34), "around"),
        (("square", (50, 60), 50), ("star", (85, 60), 50), "behind"),
        (("ring", (60, 60), 76), ("circle", (60, 60), 34), "around"),
    ],
)
def test_predicate_of_a_pair(first, second, expected):
    found = relations(item(*first), item(*second))
    inverse = scene._INVERSE[expected]
    assert found == {(0, 1): expected, (1, 0): inverse}


@pytest.mark.parametrize(
    "second", [("star", (120, 60), 40), ("star", (75, 95), 40)], ids=["far", "diagonal"]
)
def test_unclear_pairs_are_not_related(second):
    assert relations(item("circle", (40, 60), 40), item(*second)) == {}


def test_enclosed_shape_has_no_outside_neighbours():
    outer, inner, beside = (
        item("square", (50, 60), 70),
        item("star", (50, 60), 34),
        item("cross", (115, 60), 50),
    )
    found = relations(outer, inner, beside)
    assert found[1, 0] == "inside"
    assert found[0, 2] == "beside"
    assert not {(1, 2), (2, 1)} & set(found)


def test_scenes_are_well_formed(scenes):
    counts = collections.Counter()
    for image, boxes, labels, relationships in scenes:
        height, width = image.shape[:2]
        assert height == 128 and width in (128, 144, 160)
        assert 3 <= len(boxes) == len(labels) <= 6
        for x1, y1, x2, y2 in boxes:
            assert 0 < x1 < x2 < width - 1
            assert 0 < y1 < y2 < height - 1
            assert min(x2 - x1, y2 - y1) >= 10
        pairs = [(s, o) for s, o, _ in relationships]
        assert len(set(pairs)) == len(pairs), "one predicate for each ordered pair"
        predicates = {(s, o): scene.PREDICATES[p - 1] for s, o, p in relationships}
        assert all(predicates[o, s] == scene._INVERSE[p] for (s, o), p in predicates.items())
        counts.update(predicates.values())
    assert set(counts) == set(scene.PREDICATES)
    assert {label for _, _, labels, _ in scenes for label in labels} == set(range(1, 9))
    assert any(len(set(labels)) < len(labels) for _, _, labels, _ in scenes), "repeated classes"
    assert 4 <= np.mean([len(relationships) for *_, relationships in scenes]) <= 12


def test_a_box_surrounds_its_shape(scenes):
    """Inside each box there is a shape's dark rim and bright face; a blank box has neither."""
    for image, boxes, _, _ in scenes[:20]:
        value = cv2.GaussianBlur(image, (3, 3), 0).max(axis=2)
        for x1, y1, x2, y2 in boxes:
            patch = value[y1 : y2 + 1, x1 : x2 + 1]
            assert np.ptp(patch.astype(int)) > 40


def test_scenes_depend_on_the_generator_alone(scenes):
    again = scene.draw(np.random.default_rng([7, 3]))
    np.testing.assert_array_equal(again[0], scenes[3][0])
    assert again[1:] == scenes[3][1:]
    assert not np.array_equal(again[0], scenes[4][0])


def test_builder_stores_what_was_drawn(tmp_path):
    split = Split(load_builder("shapes", "tiny", str(tmp_path)), "validation")
    assert len(split) == 4
    assert split.object_classes[0] == "background"
    assert split.object_classes[1:] == scene.OBJECT_CLASSES
    image, boxes, labels, relationships = scene.draw(np.random.default_rng([0, 1, 2]))
    record = split.record(2)
    np.testing.assert_array_equal(record["boxes"], boxes)
    np.testing.assert_array_equal(record["classes"], labels)
    np.testing.assert_array_equal(record["relationships"], relationships)
    assert record["filename"] == "validation_00002.jpg"
    stored = split.image(2)
    assert stored.shape == image.shape == (record["height"], record["width"], 3)
    assert np.abs(stored.astype(int) - image).mean() < 8  # JPEG's error.


def test_splits_share_no_scene(tmp_path):
    builder = load_builder("shapes", "tiny", str(tmp_path))
    seen = [
        split.image(index).tobytes()
        for split in (Split(builder, name) for name in ("train", "validation", "test"))
        for index in range(len(split))
    ]
    assert len(seen) == 24 + 4 + 8 == len(set(seen))


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"'shape' is unknown; known: .*shapes.*vrd"):
        load_builder("shape", "", str(tmp_path))
    with pytest.raises(UserError, match=r"'huge' is unknown for shapes; known: default, tiny"):
        load_builder("shapes", "huge", str(tmp_path))
    with pytest.raises(UserError, match=r"no split 'val'; it has test, train, validation"):
        Split(load_builder("shapes", "tiny", str(tmp_path)), "val")


def test_data_dir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be built in .*file/shapes.*dataset\.data_dir"):
        load_builder("shapes", "tiny", str(tmp_path / "file"))


def test_another_process_that_builds_first_is_no_error(tmp_path, monkeypatch):
    build = Shapes.download_and_prepare

    def overtaken(builder, **options):
        build(Shapes(config="tiny", data_dir=str(tmp_path), file_format="array_record"), **options)
        raise FileExistsError("TFDS finds the folder already there")

    monkeypatch.setattr(Shapes, "download_and_prepare", overtaken)
    assert len(Split(load_builder("shapes", "tiny", str(tmp_path)), "test")) == 8
