"""Anchors clustered from box sizes."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from fnet_jax.anchors import base_anchors, read_kmeans_anchors
from fnet_jax.datasets import kmeans, load_builder
from fnet_jax.datasets.split import Split
from fnet_jax.errors import UserError

DUMMY = pathlib.Path(__file__).parents[2] / "datasets" / "vg_dr_net" / "dummy_data"


def overlap(a, b):
    """IoU of two sizes around one centre."""
    common = min(a[0], b[0]) * min(a[1], b[1])
    return common / (a[0] * a[1] + b[0] * b[1] - common)


def sides(scales, ratios):
    """Widths and heights of anchors, counted in inclusive pixels."""
    x1, y1, x2, y2 = base_anchors(scales, ratios).astype(np.float64).T
    return np.stack([x2 - x1 + 1, y2 - y1 + 1], axis=1)


def random_sizes(count=200, seed=0):
    return np.random.default_rng(seed).uniform(8, 600, (count, 2))


def test_known_clusters_are_found():
    rng = np.random.default_rng(0)
    # Widths, heights: narrow, square and wide, of different frequency, by area.
    truth = np.array([[32, 96], [128, 128], [500, 200]])
    groups = [
        centre * rng.uniform(0.95, 1.05, (n, 2))
        for centre, n in zip(truth, (150, 20, 60), strict=True)
    ]
    sizes = rng.permutation(np.concatenate(groups))
    anchors = kmeans.cluster(sizes, 3)
    stored = sides(anchors.scales, anchors.ratios)
    np.testing.assert_allclose(stored, truth, rtol=0.06)
    areas = [np.median(group, axis=0).prod() for group in groups]
    np.testing.assert_allclose(stored.prod(axis=1), areas, rtol=0.01)
    np.testing.assert_allclose(anchors.ratios, truth[:, 1] / truth[:, 0], rtol=0.03)
    assert anchors.mean_best_iou > 0.9


def test_one_anchor_is_the_median():
    # Sides of 16 and their multiples are anchors without rounding.
    sizes = np.array([[16, 16], [32, 32], [480, 480], [32, 31], [32, 33]])
    anchors = kmeans.cluster(sizes, 1)
    assert anchors.scales == [2.0]
    assert anchors.ratios == [1.0]


def test_as_many_anchors_as_sizes_are_the_sizes():
    sizes = np.array([[64, 64], [16, 16], [32, 32]] * 4)
    anchors = kmeans.cluster(sizes, 3)
    assert anchors.scales == [1.0, 2.0, 4.0]
    assert anchors.ratios == [1.0, 1.0, 1.0]
    assert anchors.mean_best_iou == 1.0


@pytest.mark.parametrize("count", [1, 5, 25])
def test_written_anchors_are_read_and_overlap_as_stated(tmp_path, count):
    sizes = random_sizes()
    anchors = kmeans.cluster(sizes, count)
    path = tmp_path / kmeans.FILE
    kmeans.write(path, anchors)
    assert [entry.name for entry in tmp_path.iterdir()] == [kmeans.FILE]

    scales, ratios = read_kmeans_anchors(path)
    assert scales == tuple(anchors.scales)
    assert ratios == tuple(anchors.ratios)
    assert len(scales) == count
    stored = sides(scales, ratios)
    mean = np.mean([max(overlap(size, anchor) for anchor in stored) for size in sizes])
    assert anchors.mean_best_iou == pytest.approx(mean, abs=1e-9)
    assert json.loads(path.read_text())["mean_best_iou"] == round(mean, 4)
    units = sides(np.ones(count), ratios)
    areas = np.square(scales) * units.prod(axis=1)
    assert (np.diff(areas) >= 0).all(), "ordered by area"


def test_more_anchors_overlap_more():
    sizes = random_sizes()
    found = [kmeans.cluster(sizes, count).mean_best_iou for count in (1, 3, 9, 25)]
    assert found == sorted(found)
    assert found[0] < 0.5 < 0.75 < found[-1]


def test_clusters_beat_their_first_choice():
    # Lloyd's rounds improve on centres that are drawn from the sizes.
    sizes = random_sizes(400)
    centres = sizes[np.random.default_rng(0).choice(400, 6, replace=False)]
    drawn = np.mean([max(overlap(size, centre) for centre in centres) for size in sizes])
    assert kmeans.cluster(sizes, 6).mean_best_iou > drawn


def test_the_same_seed_gives_the_same_anchors():
    first, again, other = (kmeans.cluster(random_sizes(), 12, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_many_boxes_are_compared_in_parts(monkeypatch):
    expected = kmeans.cluster(random_sizes(), 7)
    monkeypatch.setattr(kmeans, "_CHUNK", 13)
    assert kmeans.cluster(random_sizes(), 7) == expected


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_fewer_sizes_than_anchors(rows):
    sizes = np.repeat([[10.0, 20.0], [20.0, 10.0]], 3, axis=0)[:rows]
    distinct = len({tuple(size) for size in sizes})
    message = f"{distinct + 1} anchors need .*there are {distinct}; set fewer"
    with pytest.raises(UserError, match=message):
        kmeans.cluster(sizes, distinct + 1)


def test_sizes_of_a_dataset_are_enlarged(tmp_path):
    split = Split(load_builder("vg_dr_net", "", str(tmp_path), str(DUMMY)), "train")
    inclusive = np.array([[21, 28], [37, 24], [10, 7]])
    # 11.jpg has 46 x 42 pixels; 12.jpg has no box, 13.jpg no photo.
    np.testing.assert_allclose(kmeans.box_sizes(split, 1000), inclusive * 600 / 42)
    np.testing.assert_allclose(kmeans.box_sizes(split, 620), inclusive * 620 / 46)


def test_anchors_of_the_source_are_kept_with_the_built_dataset(tmp_path):
    source = shutil.copytree(DUMMY, tmp_path / "source")
    without = load_builder("vg_dr_net", "", str(tmp_path / "a"), str(source))
    assert not kmeans.file_of(without).exists()
    kmeans.write(source / kmeans.FILE, kmeans.Anchors([2.0, 4.5], [0.5, 2.0], 0.7))
    built = load_builder("vg_dr_net", "", str(tmp_path / "b"), str(source))
    assert kmeans.file_of(built).parent == pathlib.Path(built.data_dir)
    assert read_kmeans_anchors(kmeans.file_of(built)) == ((2.0, 4.5), (0.5, 2.0))
