"""Files -> builder -> batches -> protocols: annotations predicted as they are find themselves."""

import collections
import pathlib

import numpy as np
import pytest

from fnet_jax.datasets import load_builder
from fnet_jax.datasets.vg150 import tables
from fnet_jax.input_pipeline import Split, eval_batches
from fnet_jax.predictions import LineReader, Prediction, from_annotation, to_line
from fnet_jax.protocols import Scores

DATASETS = pathlib.Path(__file__).parents[2] / "datasets"
FORMATS = {
    "shapes": ("shapes", "tiny", None),
    "vrd official": ("vrd", "", "vrd/dummy_data/official"),
    "vrd converted": ("vrd", "", "vrd/dummy_data/converted"),
    "vg_msdn": ("vg_msdn", "", "vg_msdn/dummy_data"),
    "vg_msdn small": ("vg_msdn", "small", "vg_msdn/dummy_data"),
    "vg_dr_net": ("vg_dr_net", "", "vg_dr_net/dummy_data"),
    "vg150": ("vg150", "", "vg150/dummy_data"),
    "psg": ("psg", "", "psg/dummy_data"),
}


@pytest.fixture(params=FORMATS)
def splits(request, tmp_path, monkeypatch):
    """All splits of a dataset that have relationships."""
    monkeypatch.setattr(tables, "VALIDATION_IMAGES", 1)
    name, variant, source = FORMATS[request.param]
    manual_dir = str(DATASETS / source) if source else ""
    builder = load_builder(name, variant, str(tmp_path), manual_dir)
    read = [Split(builder, split) for split in builder.SPLITS]
    found = [s for s in read if any(len(s.record(i)["relationships"]) for i in range(len(s)))]
    assert found
    return found


def from_batch(batch) -> Prediction:
    """The annotation that a network is trained with, in pixels of the original image."""
    count = int((batch["gt_classes"][0] > 0).sum())
    table = batch["gt_relationships"][0]
    pairs = np.argwhere(table > 0)
    return Prediction(
        boxes=batch["gt_boxes"][0, :count] / batch["im_info"][0, 2],
        classes=batch["gt_classes"][0, :count].astype(np.int64),
        scores=np.ones(count, np.float32),
        triplets=np.column_stack([pairs, table[tuple(pairs.T)]]).astype(np.int64),
        triplet_scores=np.ones(len(pairs), np.float32),
        rankings={},
    )


def test_batches_hold_what_fnet_counts(splits):
    """One predicate for each pair, the last: F-Net's protocol finds all of it."""
    for split in splits:
        scores = Scores(("fnet",), len(split.predicates), split.training)
        batches = eval_batches(
            split, batch_size=1, scale=64, max_size=256, buckets=((256, 256),), color_order="bgr"
        )
        for batch in batches:
            scores.update(split.record(int(batch["image_index"][0])), from_batch(batch))
        metrics = scores.compute()
        assert metrics["annotated_relationships"] > 0
        for kind in ("relationship", "phrase", "predicate"):
            assert metrics[f"{kind}_recall@50"] == 1.0, kind


@pytest.mark.parametrize("task", ["sgdet", "sgcls", "predcls"])
def test_annotations_find_themselves_in_every_protocol(splits, task):
    """Through a line of a file. R falls short exactly where a pair has several predicates."""
    for split in splits:
        scores = Scores(("fnet", "sgb"), len(split.predicates), split.training, task)
        reader = LineReader(split.object_classes, split.predicates)
        several = False
        for index in range(len(split)):
            record = split.record(index)
            names = split.object_classes, split.predicates
            line = to_line(from_annotation(record), record["filename"], 1, 1, *names)
            scores.update(record, reader.read(line)[1])
            pairs = collections.Counter(
                map(tuple, np.unique(record["relationships"], axis=0)[:, :2])
            )
            several = several or max(pairs.values(), default=0) > 1
        metrics = scores.compute()
        assert metrics["sgb_ngR@100"] == metrics["relationship_recall@100"] == 1.0
        assert (metrics["sgb_R@100"] == 1.0) != several
        if task != "sgdet":
            assert (metrics["sgb_A@100"] == 1.0) != several
