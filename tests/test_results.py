"""Result files, the table, and the evaluation loop with a predictor made of fixed graphs."""

import json

import numpy as np
import pytest

from fnet_jax import results
from fnet_jax.errors import UserError
from fnet_jax.evaluate import evaluate, interpret_objects
from fnet_jax.structures import SceneGraph

OBJECTS = ("background", "circle", "star")
PREDICATES = ("background", "on", "under")
BOXES = np.array([[0, 0, 9, 9], [7, 7, 7, 7], [20, 20, 29.126, 39]], np.float32)


def graph(**changes) -> SceneGraph:
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
    return SceneGraph(**{**fields, **changes})


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
    fields = {name: np.stack([getattr(g, name) for g in graphs]) for name in vars(graphs[0])}
    return SceneGraph(**fields)


def test_graph_to_dict():
    line = results.graph_to_dict(graph(), "é.jpg", np.int64(40), 50, OBJECTS, PREDICATES)
    assert json.loads(json.dumps(line)) == {
        "schema": "fnet-jax/scene-graph",
        "version": 1,
        "image": "é.jpg",
        "height": 40,
        "width": 50,
        "objects": [
            {"class": "circle", "box": [0.0, 0.0, 9.0, 9.0], "score": 0.9},
            {"class": "star", "box": [20.0, 20.0, 29.13, 39.0], "score": 0.123457},
        ],
        "triplets": [
            {"subject": 1, "predicate": "under", "object": 0, "score": 0.5},
            {"subject": 0, "predicate": "on", "object": 0, "score": 1.5e-9},
        ],
    }


def test_triplet_of_no_object_is_refused():
    broken = graph(subjects=np.array([1, 0, 1], np.int32))
    with pytest.raises(ValueError, match=r"triplet of a\.jpg"):
        results.graph_to_dict(broken, "a.jpg", 40, 50, OBJECTS, PREDICATES)


def test_annotation_to_dict():
    line = results.annotation_to_dict(Records().record(0), OBJECTS, PREDICATES)
    assert line["objects"][0] == {"class": "star", "box": [20, 20, 29, 39], "score": 1.0}
    assert [t["predicate"] for t in line["triplets"]] == ["on", "under"]
    assert line["triplets"][0] | {"score": 1.0} == {
        "subject": 0,
        "predicate": "on",
        "object": 1,
        "score": 1.0,
    }


def test_writer_streams_and_renames(tmp_path):
    path = tmp_path / "new" / "graphs.jsonl"
    with results.ResultsWriter(path) as writer:
        writer.write({"image": "ä"})
        assert not path.exists()
        partial = path.with_name("graphs.jsonl.partial")
        assert partial.read_text(encoding="utf-8") == '{"image": "ä"}\n'
    assert results.read_results(path) == [{"image": "ä"}]
    with pytest.raises(RuntimeError), results.ResultsWriter(path) as writer:
        writer.write({"image": "b"})
        raise RuntimeError
    assert results.read_results(path) == [{"image": "ä"}]
    assert results.read_results(partial) == [{"image": "b"}]


def test_metrics_file(tmp_path):
    path = tmp_path / "metrics.json"
    results.write_metrics(path, {"mAP": 0.5})
    assert json.loads(path.read_text()) == {"protocol": "F-Net", "mAP": 0.5}
    with pytest.raises(ValueError):
        results.write_metrics(path, {"mAP": float("nan")})
    assert list(tmp_path.iterdir()) == [path]


def run(batches, predict=None, **options):
    predict = predict or (lambda b: stacked(*[graph()] * len(b["valid"])))
    return evaluate(
        predict, Records(), batches, object_names=OBJECTS, predicate_names=PREDICATES, **options
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
    assert all(isinstance(float(value), float) for value in metrics.values())


def test_cut_offs_are_passed_on():
    assert run([batch([0])], top_ns=(1, 7))["relationship_recall@7"] == 1.0


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


def test_table():
    metrics = run([batch([0]), batch([1])], use_gt_boxes=True)
    table = results.format_table(metrics)
    assert "F-Net protocol" in table and "annotated boxes given" in table
    rows = [line.split() for line in table.splitlines()]
    assert ["recall", "in", "%", "@50", "@100"] in rows
    kinds = [row[0] for row in rows if row and row[0] in ("predicate", "phrase", "relationship")]
    assert kinds == ["predicate", "phrase", "relationship"]
    assert ["relationship", "50.000", "50.000"] in rows
    assert max(map(len, table.splitlines())) <= 80
