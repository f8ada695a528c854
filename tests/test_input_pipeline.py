"""Resizing, padding, order, sharding and resuming of the batches."""

import dataclasses
import itertools
import json
import shutil

import cv2
import numpy as np
import pytest

from fnet_jax import image_ops
from fnet_jax.datasets import load_builder, schema
from fnet_jax.datasets.scene_graph_builder import SceneGraphBuilder
from fnet_jax.errors import UserError
from fnet_jax.input_pipeline import Split, eval_batches, steps_per_epoch, train_batches

BUCKETS = ((128, 160), (160, 128), (160, 160), (256, 256))


class Oddities(SceneGraphBuilder):
    """What real data has: nothing annotated, repeated pairs, an object related to itself."""

    name = "oddities"

    def vocabulary(self, source):
        return schema.Vocabulary(("background", "a", "b"), ("background", "p", "q", "r"))

    def scenes(self, source, split):
        rng = np.random.default_rng(5)
        boxes = [(10, 20, 49, 59), (0, 0, 100, 30), (60, 10, 130, 90)]
        for name, size, count, relationships in (
            ("many.png", (91, 120), 3, [(0, 1, 1), (1, 1, 2), (0, 1, 3), (2, 0, 2), (0, 1, 2)]),
            ("bare.png", (64, 200), 2, []),
            ("empty.png", (100, 50), 0, []),
        ):
            image = rng.integers(0, 255, (*size, 3), np.uint8)
            annotation = schema.Annotation(name, boxes[:count], [2, 1, 2][:count], relationships)
            yield schema.Scene(cv2.imencode(".png", image)[1].tobytes(), *size, annotation)


class BothOrientations(SceneGraphBuilder):
    """Upright and lying images in no regular order, so that steps differ in their bucket."""

    name = "both_orientations"

    def vocabulary(self, source):
        return schema.Vocabulary(("background", "a"), ("background", "p"))

    def scenes(self, source, split):
        rng = np.random.default_rng(11)
        lying = [True] * 4 + [False] * 4 + rng.integers(0, 2, 16).astype(bool).tolist()
        for index, wide in enumerate(lying):
            size = (64, 80) if wide else (80, 64)
            image = rng.integers(0, 255, (*size, 3), np.uint8)
            boxes = [(5, 5, 30, 40), (20, 30, 60, 63)]
            annotation = schema.Annotation(f"{index}.png", boxes, [1, 1], [(0, 1, 1)])
            yield schema.Scene(cv2.imencode(".png", image)[1].tobytes(), *size, annotation)


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("turned"))
    builder = BothOrientations(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return Split(builder, "train")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return load_builder("shapes", "tiny", str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def train(shapes):
    return Split(shapes, "train")


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    builder = Oddities(data_dir=str(tmp_path_factory.mktemp("odd")), file_format="array_record")
    builder.download_and_prepare()
    return Split(builder, "train")


def training(split, **changes):
    options = {
        "batch_size": 2,
        "seed": 3,
        "scales": (96, 128, 160),
        "max_size": 180,
        "buckets": BUCKETS,
        "color_order": "bgr",
    }
    return train_batches(split, **{**options, **changes})


def evaluation(split, **changes):
    options = {
        "batch_size": 1,
        "scale": 128,
        "max_size": 256,
        "buckets": ((256, 256),),
        "color_order": "bgr",
    }
    return eval_batches(split, **{**options, **changes})


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize(
    ("size", "target", "max_size", "expected"),
    [
        ((300, 400), 600, 1000, ((600, 800), 2.0)),
        ((400, 300), 600, 1000, ((800, 600), 2.0)),
        ((600, 1000), 600, 1000, ((600, 1000), 1.0)),
        # 1001 is above the limit, so that the long side decides.
        ((600, 1001), 600, 1000, ((599, 1000), 1000 / 1001)),
        ((1200, 2000), 600, 1000, ((600, 1000), 0.5)),
        ((3, 2001), 600, 1000, ((1, 1000), 1000 / 2001)),
        ((1, 5000), 600, 1000, ((1, 1000), 0.2)),  # By factor alone its height would be 0.
    ],
)
def test_resized_size(size, target, max_size, expected):
    factor = float(image_ops.resize_factor(np.array(size), target, max_size))
    assert factor == expected[1]
    assert tuple(image_ops.resized_size(np.array(size), np.float64(factor))) == expected[0]
    image = np.zeros((*size, 3), np.uint8)
    assert image_ops.resize(image, factor).shape == (*expected[0], 3)


def test_planned_size_is_what_opencv_makes():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(20, 400, (200, 2)):
        target = int(rng.integers(50, 200))
        factor = float(image_ops.resize_factor(np.array([height, width]), target, 300))
        image = np.zeros((height, width, 3), np.uint8)
        planned = image_ops.resized_size(np.array([height, width]), np.float64(factor))
        assert image_ops.resize(image, factor).shape[:2] == tuple(planned)


def test_long_side_within_half_a_pixel_of_the_limit_is_not_shrunk():
    # 0.6 * 1667 = 1000.2 rounds to 1000, which is not above the limit.
    factor = image_ops.resize_factor(np.array([1000, 1667]), 600, 1000)
    assert factor == 0.6


def test_one_batch_in_full(odd):
    batches = list(evaluation(odd))
    assert len(batches) == 3
    record, image = odd.record(0), odd.image(0)
    factor = 128 / 91
    resized = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    height, width = resized.shape[:2]
    assert (height, width) == (128, 169)

    batch = batches[0]
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "image": ((1, 256, 256, 3), np.uint8),
        "im_info": ((1, 5), np.float32),
        "gt_boxes": ((1, 8, 4), np.float32),
        "gt_classes": ((1, 8), np.int32),
        "gt_relationships": ((1, 8, 8), np.int32),
        "image_index": ((1,), np.int32),
        "valid": ((1,), bool),
    }
    np.testing.assert_array_equal(batch["image"][0, :height, :width], resized)
    assert not batch["image"][0, height:].any()
    assert not batch["image"][0, :, width:].any()
    np.testing.assert_allclose(batch["im_info"][0], [height, width, factor, 91, 120])
    np.testing.assert_allclose(batch["gt_boxes"][0, :3], record["boxes"] * factor, rtol=1e-6)
    assert not batch["gt_boxes"][0, 3:].any()
    np.testing.assert_array_equal(batch["gt_classes"][0], [2, 1, 2, 0, 0, 0, 0, 0])
    # The last of three annotations of (0, 1) wins; an object may be related to itself.
    expected = np.zeros((8, 8), np.int32)
    expected[0, 1], expected[1, 1], expected[2, 0] = 2, 2, 2
    np.testing.assert_array_equal(batch["gt_relationships"][0], expected)

    assert len(record["relationships"]) == 5, "the record keeps all that is annotated"
    assert (batches[1]["gt_classes"] > 0).sum() == 2
    assert not batches[1]["gt_relationships"].any()
    assert not batches[2]["gt_classes"].any()


def test_color_order(odd):
    bgr, rgb = next(evaluation(odd)), next(evaluation(odd, color_order="rgb"))
    np.testing.assert_array_equal(bgr["image"], rgb["image"][..., ::-1])
    assert (bgr["image"] != rgb["image"]).any()
    np.testing.assert_array_equal(odd.image(0, "rgb"), odd.image(0)[..., ::-1])
    with pytest.raises(UserError, match=r"image\.color_order is 'hsv'"):
        evaluation(odd, color_order="hsv")


def test_one_of_several_predicates(odd):
    """The last one of a pair, or each of its annotations equally often."""
    options = {"batch_size": 1, "buckets": ((256, 256),)}

    def predicates(**changes):
        batches = itertools.islice(training(odd, **options, **changes), 600)
        tables = [b["gt_relationships"][0] for b in batches if b["image_index"][0] == 0]
        return np.array([[t[0, 1], t[1, 1], t[2, 0]] for t in tables])

    assert (predicates() == [2, 2, 2]).all()
    drawn = predicates(pair_predicate="random")
    assert (drawn[:, 1:] == 2).all()
    counts = np.bincount(drawn[:, 0], minlength=4)[1:]
    assert counts.sum() == len(drawn) == 200 and counts.min() > 40
    np.testing.assert_array_equal(drawn, predicates(pair_predicate="random"))
    with pytest.raises(UserError, match=r"pair_predicate is 'first'"):
        training(odd, pair_predicate="first", **options)


def test_overlapping_pairs_only(odd):
    options = {"batch_size": 1, "buckets": ((256, 256),), "overlapping_pairs_only": True}
    batch = next(b for b in training(odd, **options) if b["image_index"][0] == 0)
    # Objects 2 and 0 have no pixel in common.
    found = np.argwhere(batch["gt_relationships"][0] > 0).tolist()
    assert found == [[0, 1], [1, 1]]


@pytest.mark.parametrize("changes", [{"seed": -1}, {"scales": ()}, {"scales": (0,)}])
def test_impossible_settings(odd, changes):
    with pytest.raises(UserError, match=r"config\.(seed|image\.train_scales)"):
        training(odd, **changes)


def test_smallest_bucket_is_chosen(turned):
    for batch in evaluation(turned, buckets=BUCKETS, max_size=160):
        height = batch["im_info"][0, 0]
        expected = (128, 160) if height == 128 else (160, 128)
        assert batch["image"].shape[1:3] == expected


def test_image_that_fits_no_bucket_is_named(odd):
    with pytest.raises(UserError, match=r"image 1 \(bare\.png\) .*128 x 400 .*add \(128, 400\)"):
        evaluation(odd, max_size=500)
    with pytest.raises(UserError, match=r"image 1 \(bare\.png\)"):
        training(odd, scales=(64, 128), max_size=500)


def test_images_of_one_step_that_fit_no_common_bucket(turned):
    upright_or_lying = ((128, 160), (160, 128))
    evaluation(turned, buckets=upright_or_lying, max_size=160, batch_size=1)
    with pytest.raises(UserError, match=r"images of one step .*add \(160, 160\)"):
        evaluation(turned, buckets=upright_or_lying, max_size=160, batch_size=2)


def test_evaluation_visits_each_image_once_in_order(train):
    batches = list(evaluation(train, batch_size=5))
    assert len(batches) == 5
    valid = np.concatenate([batch["valid"] for batch in batches])
    indices = np.concatenate([batch["image_index"] for batch in batches])
    np.testing.assert_array_equal(indices[valid], np.arange(24))
    np.testing.assert_array_equal(indices[~valid], [-1])
    np.testing.assert_array_equal(batches[-1]["image"][4], batches[-1]["image"][3])


@pytest.mark.parametrize("batches_of", [evaluation, training])
def test_processes_divide_each_step(turned, batches_of):
    """Four processes of one image see the rows of one process of four, in the same bucket."""
    options = {"buckets": BUCKETS, "max_size": 180}
    together = itertools.islice(batches_of(turned, batch_size=4, **options), 6)
    apart = [
        itertools.islice(
            batches_of(turned, batch_size=1, process_index=index, process_count=4, **options), 6
        )
        for index in range(4)
    ]
    shapes = set()
    for whole, *parts in zip(together, *apart, strict=True):
        for row, part in enumerate(parts):
            assert_equal(part, {key: value[row : row + 1] for key, value in whole.items()})
        shapes.add(whole["image"].shape)
    assert len(shapes) > 1, "more than one bucket occurs, or the test shows nothing"


def test_fillers_are_the_same_number_of_steps_in_all_processes(train):
    parts = [
        list(evaluation(train, batch_size=7, process_index=index, process_count=2))
        for index in range(2)
    ]
    assert [len(part) for part in parts] == [2, 2]
    assert [[int(batch["valid"].sum()) for batch in part] for part in parts] == [[7, 7], [7, 3]]


def test_training_epochs_are_shuffled_permutations(train):
    indices = np.concatenate(
        [batch["image_index"] for batch in itertools.islice(training(train, batch_size=5), 15)]
    )
    epochs = indices[:72].reshape(3, 24)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), [np.arange(24)] * 3)
    assert len({tuple(epoch) for epoch in [*epochs, np.arange(24)]}) == 4
    assert steps_per_epoch(24, 5) == 5
    assert steps_per_epoch(25, 5) == 5
    assert steps_per_epoch(1, 4) == 1


def test_training_scales_are_drawn_per_image_and_visit(train):
    batches = list(itertools.islice(training(train, scales=(96, 128, 128, 144)), 48))
    info = np.concatenate([batch["im_info"] for batch in batches])
    short = info[:, :2].min(axis=1)
    counts = {side: int((short == side).sum()) for side in (96, 128, 144)}
    assert sum(counts.values()) == 96
    assert all(counts.values())
    assert counts[128] > max(counts[96], counts[144]), "listed twice, drawn twice as often"
    index = np.concatenate([batch["image_index"] for batch in batches])
    assert any(len(set(short[index == image])) > 1 for image in range(24))
    for batch in batches:
        for boxes, info_, image in zip(
            batch["gt_boxes"], batch["im_info"], batch["image_index"], strict=True
        ):
            expected = train.record(int(image))["boxes"] * info_[2]
            np.testing.assert_allclose(boxes[: len(expected)], expected, rtol=1e-6)


def test_seed_decides_everything(train):
    first, same, other = training(train), training(train), training(train, seed=4)
    for _ in range(4):
        assert_equal(next(first), next(same))
    order = [[int(i) for _ in range(6) for i in next(it)["image_index"]] for it in (first, other)]
    assert order[0] != order[1]


@pytest.mark.parametrize("workers", [(0, 0), (0, 2), (2, 0)], ids=str)
def test_resuming_gives_the_same_following_batches(train, workers):
    """A saved position holds whatever the number of workers before and after."""
    before = training(train, batch_size=5, num_workers=workers[0])
    for _ in range(6):  # Past the first epoch, in the middle of the second.
        next(before)
    state = json.loads(json.dumps(before.get_state()))
    expected = [next(before) for _ in range(5)]
    before.close()

    resumed = training(train, batch_size=5, num_workers=workers[1])
    next(resumed)
    resumed.set_state(state)
    assert resumed.get_state() == state
    for batch in expected:
        assert_equal(next(resumed), batch)
    resumed.close()


def test_workers_yield_the_same_evaluation(train):
    for found, expected in zip(
        evaluation(train, batch_size=5, num_workers=2), evaluation(train, batch_size=5), strict=True
    ):
        assert_equal(found, expected)


def test_part_of_a_split(shapes, train):
    part = Split(shapes, "train[5:9]")
    assert len(part) == 4
    assert part.record(0)["filename"] == train.record(5)["filename"] == "train_00005.jpg"
    np.testing.assert_array_equal(part.sizes, train.sizes[5:9])
    np.testing.assert_array_equal(part.image(3), train.image(8))
    assert [int(batch["image_index"][0]) for batch in evaluation(part)] == [0, 1, 2, 3]
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"image {index} of 4"):
            part.record(index)


@dataclasses.dataclass
class Damaged:
    """A data source whose records from `index` on have lost the end of their image."""

    source: object
    index: int

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        record = dict(self.source[index])
        if index >= self.index:
            record["image"] = b"\xff\xd8\xff not an image"
        return record


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damaged_image_is_named(shapes, num_workers):
    split = Split(shapes, "test")
    split._source = Damaged(split._source, 3)
    batches = evaluation(split, num_workers=num_workers)
    for _ in range(3):
        next(batches)
    with pytest.raises(UserError, match=r"shapes, split test: image 3 \(test_00003\.jpg\)"):
        next(batches)


def test_damaged_metadata_is_noticed(shapes, tmp_path):
    copy = shutil.copytree(shapes.data_dir, tmp_path / "shapes" / "tiny" / str(shapes.version))
    metadata = json.loads((copy / "metadata.json").read_text())
    metadata["image_sizes"]["test"].reverse()
    (copy / "metadata.json").write_text(json.dumps(metadata))
    split = Split(load_builder("shapes", "tiny", str(tmp_path)), "test")
    with pytest.raises(UserError, match="is damaged"):
        list(evaluation(split))


@pytest.mark.parametrize(
    ("harm", "num_workers"), [("deleted", 0), ("cut off", 0), ("overwritten", 0), ("deleted", 1)]
)
def test_a_dataset_that_vanishes_is_named(shapes, tmp_path, harm, num_workers):
    folder = shutil.copytree(shapes.data_dir, tmp_path / "shapes" / "tiny" / str(shapes.version))
    split = Split(load_builder("shapes", "tiny", str(tmp_path)), "test")
    (records,) = folder.glob("shapes-test*")
    if harm == "deleted":
        records.unlink()
    elif harm == "cut off":
        records.write_bytes(records.read_bytes()[:5000])
    else:
        records.write_bytes(np.random.default_rng(0).bytes(records.stat().st_size))
    batches = evaluation(split, num_workers=num_workers)
    with pytest.raises(UserError) as caught:
        next(batches)
    message = str(caught.value)
    assert message.startswith(f"dataset shapes, split test: image 0 cannot be read from {folder} (")
    assert "put the built dataset back" in message and "\n" not in message
