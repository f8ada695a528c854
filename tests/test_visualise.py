"""Pictures of scene graphs: what they show, and that labels keep apart."""

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest

from fnet_jax import visualise

SIDE = 120


def objects(*rows):
    """Rows (class, box, score)."""
    return [{"class": name, "box": list(box), "score": score} for name, box, score in rows]


def triplets(*rows):
    """Rows (subject, predicate, object, score)."""
    keys = ("subject", "predicate", "object", "score")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def crowd(count, relations):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, SIDE * 0.7, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 30, (count, 2))], axis=1).tolist()
    ring = [(i, (i + 1) % count) for i in range(count)]  # every object takes part
    pairs = ring + [(i, j) for i in range(count) for j in range(count) if (i * j) % 5 == 4]
    return {
        "image": "crowd.png",
        "objects": objects(*[(f"class{i % 4}", box, 0.9) for i, box in enumerate(boxes)]),
        "triplets": triplets(*[(i, "left of", j, 0.5) for i, j in pairs[:relations]]),
    }


@pytest.fixture
def texts(monkeypatch):
    """The texts and their extents on each axes of the last figure drawn, by savefig."""
    drawn = []
    save = matplotlib.figure.Figure.savefig

    def spy(figure, *args, **kwargs):
        drawn[:] = [[(t.get_text(), t.get_window_extent()) for t in ax.texts] for ax in figure.axes]
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    return drawn


def draw(graph, path, **options):
    image = np.full((SIDE, SIDE, 3), 200, np.uint8)
    visualise.draw_scene_graph(image, graph, path, **options)
    return matplotlib.image.imread(path)


def test_names_and_predicates(texts, tmp_path):
    graph = {
        "image": "a.png",
        "objects": objects(
            ("circle", (5, 5, 40, 40), 0.9),
            ("star", (60, 60, 100, 100), 0.8),
            ("circle", (70, 10, 110, 30), 0.7),
            ("square", (0, 80, 20, 100), 0.6),  # in no relationship
        ),
        "triplets": triplets(
            (0, "above", 1, 0.9), (2, "above", 1, 0.8), (0, "near", 1, 0.7), (1, "on", 1, 0.6)
        ),
    }
    draw(graph, tmp_path / "a.png")
    left, right = ([text for text, _ in axes] for axes in texts)
    assert sorted(left) == ["circle 1", "circle 2", "star 1"]
    # One predicate per pair: the better one.
    assert sorted(right) == ["above", "above", "circle 1", "circle 2", "on", "star 1"]


def test_top_k_and_min_score(texts, tmp_path):
    graph = crowd(6, 8)
    for rank, triplet in enumerate(graph["triplets"]):
        triplet.update(score=1 - rank / 10, predicate=f"p{rank}")
    draw(graph, tmp_path / "a.png", top_k=3)
    assert {text for text, _ in texts[1] if text[0] == "p"} == {"p0", "p1", "p2"}
    draw(graph, tmp_path / "a.png", min_score=0.75)
    assert {text for text, _ in texts[1] if text[0] == "p"} == {"p0", "p1", "p2"}


def test_duplicates_are_drawn_once(texts, tmp_path):
    graph = {
        "image": "a.png",
        "objects": objects(
            ("circle", (5, 5, 40, 40), 0.3),
            ("circle", (6, 5, 41, 40), 0.9),
            ("star", (6, 5, 41, 40), 0.8),  # of another class: another object
        ),
        # The second one relates the two detections of the circle, the last the star to itself.
        "triplets": triplets(
            (0, "on", 2, 0.9), (0, "in", 1, 0.9), (1, "under", 2, 0.8), (2, "at", 2, 0.7)
        ),
    }
    draw(graph, tmp_path / "a.png")
    assert sorted(text for text, _ in texts[0]) == ["circle 1", "star 1"]
    assert sorted(text for text, _ in texts[1]) == ["at", "circle 1", "on", "star 1"]


@pytest.mark.parametrize(("count", "relations"), [(3, 3), (12, 15)])
def test_labels_keep_apart(texts, tmp_path, count, relations):
    draw(crowd(count, relations), tmp_path / "a.png")
    for axes in texts:
        extents = [extent for _, extent in axes]
        assert len(extents) >= count
        touching = sum(
            a.overlaps(b) for i, a in enumerate(extents) for b in extents[:i] if a is not b
        )
        assert touching <= len(extents) // 10


def test_annotation_fills_a_second_row(texts, tmp_path):
    one = draw(crowd(3, 2), tmp_path / "one.png")
    both = draw(crowd(3, 2), tmp_path / "deep" / "both.png", annotation=crowd(5, 4))
    assert both.shape[0] == 2 * one.shape[0] and both.shape[1] == one.shape[1]
    assert len(texts) == 4
    assert one.std() > 0.01


def test_graph_without_relationships(texts, tmp_path):
    graph = crowd(5, 0)
    for rank, found in enumerate(graph["objects"]):
        found["score"] = 0.9 - rank / 10
    draw(graph, tmp_path / "a.png", top_k=2)
    assert [len(axes) for axes in texts] == [2, 1]
    assert texts[1][0][0] == "none"
    draw({"image": "a", "objects": [], "triplets": []}, tmp_path / "a.png")
    assert len(texts[0]) == 0


def test_single_object_and_unconnected_parts(texts, tmp_path):
    graph = crowd(5, 0)
    graph["triplets"] = triplets((0, "on", 0, 0.9))
    draw(graph, tmp_path / "a.png")
    assert sorted(text for text, _ in texts[1]) == ["class0 1", "on"]
    graph["triplets"] = triplets((0, "on", 1, 0.9), (2, "on", 3, 0.9))
    draw(graph, tmp_path / "a.png")
    assert len(texts[1]) == 6


def test_nothing_global_is_left(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    draw(crowd(3, 2), tmp_path / "a.png")
    assert plt.get_fignums() == before
