"""Result files, the table, and the evaluation loop with a predictor made of fixed graphs."""

import json

import jax
import numpy as np
import pytest

from fnet_jax import predictions, results
from fnet_jax.errors import UserError
from fnet_jax.evaluate import evaluate, interpret_objects
from fnet_jax.metrics import TrainingStatistics
from fnet_jax.protocols import Scores
from fnet_jax.structures import PaddedGraph, Triplets

OBJECTS = ("background", "circle", "star")
PREDICATES = ("background", "on", "under")
TRAINING = TrainingStatistics((0, 2, 1), {(2, 1, 1)})
BOXES = np.array([[0, 0, 9, 9], [7, 7, 7, 7], [20, 20, 29.126, 39]], np.float32)


def graph(**changes) -> PaddedGraph:
    """A circle (slot 0) and a star (slot 2); slot 1 is not in use."""
    fields = {
        "boxes": BOXES,
        "scores": np.array([0.9, 0.0, 0.123456789], np.float32),
        "classes": np.array([1, 0, 2], np.int32),
        "object_mask": np.array([True, False, True]),
        "subjects": np.array([2, 0, 1], np.int32),
        "objects": np.array([0, 0, 1], np.int32),
        "predicates": np.array([2, 1, 0], np.int32),
        "triplet_scores": np.array([0.5, 1.5e-9, 0], np.float32),
        "triplet_mask": np.array([True, True, False]),
        "class_probs": np.array([[0.1, 0.8, 0.1], [0, 1, 0], [0.3, 1e-6, 0.7]], np.float32),
        "class_boxes": np.repeat(BOXES[:, None], 3, axis=1),
        "roi_mask": np.array([True, False, True]),
        "proposals": np.array([[20, 20, 29, 39], [0, 0, 9, 9]], np.float32),
        "proposal_mask": np.array([True, False]),
        "num_subgraphs": np.int32(3),
        "overflow": np.int32(0),
    }
    return PaddedGraph(**{**fields, **changes})


class Records:
    """Two annotated images; the first one's pair was annotated twice."""

    def record(self, index):
        return {
            "filename": f"{index}.jpg",
            "height": 40,
            "width": 50,
            "boxes": np.array([[20, 20, 29, 39], [0, 0, 9, 9]], np.float64),
            "classes": np.array([2, 1]),
            "relationships": np.array([[0, 1, 1], [0, 1, 2]])[: 2 - index],
        }


def batch(indices, side=4):
    valid = np.array(indices) >= 0
    return {
        "image": np.zeros((len(indices), side, side, 3), np.uint8),
        "image_index": np.array(indices, np.int32),
        "valid": valid,
    }


def stacked(*graphs):
    return jax.tree.map(lambda *arrays: np.stack(arrays), *graphs)


def to_line(prediction):
    return predictions.to_line(prediction, "é.jpg", np.int64(40), 50, OBJECTS, PREDICATES)


def ranked(subjects, objects, predicates, scores):
    columns = (np.array(column, np.int32) for column in (subjects, objects, predicates))
    return Triplets(*columns, np.array(scores, np.float32), np.array(scores) > 0)


def test_line_of_a_graph():
    line = to_line(predictions.from_graph(graph()))
    assert json.loads(json.dumps(line)) == {
        "schema": "fnet-jax/scene-graph",
        "version": 1,
        "image": "é.jpg",
        "height": 40,
        "width": 50,
        "objects": [
            {"class": "circle", "box": [0.0, 0.0, 9.0, 9.0], "score": 0.9},
            {"class": "star", "box": [20.0, 20.0, 29.126, 39.0], "score": 0.123457},
        ],
        "triplets": [
            {"subject": 1, "predicate": "under", "object": 0, "score": 0.5},
            {"subject": 0, "predicate": "on", "object": 0, "score": 1.5e-9},
        ],
        "rankings": {"fnet": [0, 1]},
    }


def test_further_rankings_share_the_list_of_triplets():
    both = graph(
        constrained=ranked([0, 2], [2, 0], [1, 2], [0.7, 0.6]),
        unconstrained=ranked([0, 0, 2, 0], [2, 2, 0, 0], [1, 2, 2, 0], [0.7, 0.65, 0.6, 0]),
    )
    line = to_line(predictions.from_graph(both))
    listed = [(t["subject"], t["predicate"], t["object"], t["score"]) for t in line["triplets"]]
    assert listed == [
        (1, "under", 0, 0.5),
        (0, "on", 0, 1.5e-9),
        (0, "on", 1, 0.7),
        (0, "under", 1, 0.65),
    ]
    assert line["rankings"] == {"fnet": [0, 1], "sgb": [2, 0], "sgb_unconstrained": [2, 3, 0]}


def test_a_line_read_back_is_the_same_prediction():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.uniform(0, 1e3, (3, 2, 2)), axis=1).reshape(3, 4).astype(np.float32)
    written = predictions.from_graph(graph(boxes=boxes))
    reader = predictions.LineReader(OBJECTS, PREDICATES)
    image, read = reader.read(json.loads(json.dumps(to_line(written))))
    assert image == "é.jpg"
    for name in ("boxes", "classes", "triplets"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    np.testing.assert_allclose(read.scores, written.scores, rtol=1e-5)
    np.testing.assert_array_equal(read.ranked("fnet"), written.ranked("fnet"))


def test_triplet_of_no_object_is_refused():
    broken = graph(subjects=np.array([1, 0, 1], np.int32))
    with pytest.raises(ValueError, match="triplet refers to an object that does not exist"):
        predictions.from_graph(broken)


def test_line_of_an_annotation():
    line = to_line(predictions.from_annotation(Records().record(0)))
    assert line["objects"][0] == {"class": "star", "box": [20, 20, 29, 39], "score": 1.0}
    assert [t["predicate"] for t in line["triplets"]] == ["on", "under"]
    assert line["triplets"][0] == {"subject": 0, "predicate": "on", "object": 1, "score": 1.0}
    assert "rankings" not in line


def test_writer_streams_and_renames(tmp_path):
    path = tmp_path / "new" / "graphs.jsonl"
    with results.ResultsWriter(path) as writer:
        writer.write({"image": "ä"})
        assert not path.exists()
        partial = path.with_name("graphs.jsonl.partial")
        assert partial.read_text(encoding="utf-8") == '{"image": "ä"}\n'
    assert list(results.read_results(path)) == [{"image": "ä"}]
    with pytest.raises(RuntimeError), results.ResultsWriter(path) as writer:
        writer.write({"image": "b"})
        raise RuntimeError
    assert list(results.read_results(path)) == [{"image": "ä"}]
    assert list(results.read_results(partial)) == [{"image": "b"}]


def test_results_that_cannot_be_written_are_named(tmp_path):
    path = tmp_path / "graphs.jsonl"
    path.write_text("before\n")
    (tmp_path / "graphs.jsonl.partial").symlink_to("/dev/full")
    message = r"graphs\.jsonl cannot be written \(No space left"
    with pytest.raises(UserError, match=message), results.ResultsWriter(path) as writer:
        writer.write({"image": "1.jpg"})
    assert path.read_text() == "before\n"


def test_metrics_file(tmp_path):
    path = tmp_path / "metrics.json"
    results.write_metrics(path, {"mAP": 0.5})
    assert json.loads(path.read_text()) == {"mAP": 0.5}
    with pytest.raises(ValueError):
        results.write_metrics(path, {"mAP": float("nan")})
    assert list(tmp_path.iterdir()) == [path]


def run(batches, predict=None, *, protocols=("fnet",), task="sgdet", **options):
    predict = predict or (lambda b: stacked(*[graph()] * len(b["valid"])))
    return evaluate(
        predict,
        Records(),
        batches,
        scores=Scores(protocols, len(PREDICATES), TRAINING, task),
        object_names=OBJECTS,
        predicate_names=PREDICATES,
        **options,
    )


def test_evaluate(tmp_path):
    path = tmp_path / "graphs.jsonl"
    metrics = run([batch([0]), batch([1])], results_path=path)
    assert metrics["relationship_recall@50"] == 0.5  # the second image says "on"
    assert metrics["predicate_recall@100"] == metrics["phrase_recall@100"] == 0.5
    assert metrics["rpn_recall@50"] == 0.5  # only the star's proposal is in use
    assert metrics["mAP"] == 1.0
    assert metrics["annotated_relationships"] == metrics["images"] == 2
    assert [line["image"] for line in results.read_results(path)] == ["0.jpg", "1.jpg"]
    json.dumps(metrics, allow_nan=False)
    assert metrics.pop("task") == "sgdet"
    assert all(isinstance(float(value), float) for value in metrics.values())


def test_fillers_do_not_count():
    metrics = run([batch([0, -1])])
    assert metrics["images"] == metrics["annotated_relationships"] == 1


def test_subgraphs_and_overflow():
    counts = iter([(3, 0), (9, 4), (6, 1)])

    def predict(_):
        found, lost = next(counts)
        return stacked(graph(num_subgraphs=np.int32(found), overflow=np.int32(lost)))

    metrics = run([batch([0]), batch([1]), batch([1])], predict)
    assert metrics["subgraphs_average"] == 6.0
    assert metrics["subgraphs_maximum"] == 9
    assert metrics["overflowed_pairs"] == 5
    assert metrics["overflowed_images"] == 2
    assert "5 (in 2 images)" in results.format_table(metrics)


def test_compiling_is_not_timed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    seconds = iter([100.0, 200.0, 3.0, 5.0])

    def predict(b):
        now[0] += next(seconds)
        return stacked(*[graph()] * len(b["valid"]))

    batches = [batch([0, 1], 4), batch([0, 1], 8), batch([0, 1], 4), batch([1, -1], 8)]
    metrics = run(batches, predict)
    assert metrics["seconds_per_image"] == pytest.approx((3.0 + 5.0) / 3)
    seconds = iter([100.0])
    metrics = run([batch([0])], predict)
    assert "seconds_per_image" not in metrics
    assert "seconds" not in results.format_table(metrics)


def test_nothing_to_evaluate():
    with pytest.raises(UserError, match="no image"):
        run([])


def test_broken_weights_are_named_with_the_image(tmp_path):
    def predict(_):
        return stacked(graph(class_probs=np.full((3, 3), np.nan, np.float32)))

    with pytest.raises(UserError, match=r"class probabilities of image 1\.jpg are not finite"):
        run([batch([1])], predict, results_path=tmp_path / "graphs.jsonl")


def test_unused_slots_may_hold_anything():
    probs = graph().class_probs.copy()
    probs[1] = np.nan
    assert run([batch([0])], lambda _: stacked(graph(class_probs=probs)))["mAP"] == 1.0


def test_interpret_objects_takes_every_likely_class():
    boxes, scores, classes = interpret_objects(graph(), None)
    np.testing.assert_array_equal(classes, [1, 2, 2])  # 1e-6 is too little
    np.testing.assert_array_equal(scores, np.array([0.8, 0.1, 0.7], np.float32))
    np.testing.assert_array_equal(boxes, BOXES[[0, 0, 2]])


def test_interpret_objects_keeps_the_best():
    rng = np.random.default_rng(0)
    probs = rng.permutation(3000).reshape(1000, 3).astype(np.float32) + 1
    many = graph(
        class_probs=probs, class_boxes=np.zeros((1000, 3, 4)), roi_mask=np.ones(1000, bool)
    )
    _, scores, classes = interpret_objects(many, None)
    every = probs[:, 1:]
    assert len(every.ravel()) == 2000 == len(scores)
    more = graph(
        class_probs=np.pad(probs, ((0, 0), (0, 1)), constant_values=0.5),
        class_boxes=np.zeros((1000, 4, 4)),
        roi_mask=np.ones(1000, bool),
    )
    _, scores, classes = interpret_objects(more, None)
    np.testing.assert_array_equal(np.sort(scores), np.sort(every.ravel()))
    assert set(classes) == {1, 2}


def test_table_of_one_protocol():
    table = results.format_table(run([batch([0]), batch([1])]))
    assert "F-Net: all images pooled" in table and "SGDet" in table and "SGB" not in table
    rows = [line.split() for line in table.splitlines()]
    assert ["F-Net,", "%", "@50", "@100"] in rows
    assert ["relationship", "50.000", "50.000"] in rows


def test_table_of_both_protocols():
    given = {"boxes": BOXES[[2, 1, 0]], "classes": np.array([2, 0, 1], np.int32)}
    given["subjects"], given["objects"] = np.array([[0, 2, 1], [2, 2, 1]], np.int32)

    def predict(b):
        lists = ranked([0], [2], [2], [0.5])
        return stacked(*[graph(**given, constrained=lists, unconstrained=lists)] * len(b["valid"]))

    batches = [batch([0]), batch([1])]
    metrics = run(batches, predict, protocols=("fnet", "sgb"), task="sgcls")
    # The first image has the relationships on and under, the second one on: under is found.
    assert metrics["sgb_R@20"] == metrics["sgb_ngR@20"] == 0.25
    assert metrics["sgb_mR@20"] == 0.5
    assert metrics["sgb_A@20"] == pytest.approx(1 / 3)
    assert metrics["sgb_zR@20"] == 1.0, "under never occurs in training"
    table = results.format_table(metrics)
    assert "annotated boxes given" in table
    lines = table.splitlines()
    assert sum(line.startswith(("F-Net:", "SGB:")) for line in lines) == 2
    row = next(line for line in lines if line.startswith("relationship"))
    fnet, sgb = row.split("|")
    assert fnet.split() == ["relationship", "50.000", "50.000"]
    assert sgb.split() == ["R", "25.000", "25.000", "25.000"]
    assert max(map(len, lines[4:])) <= 80
