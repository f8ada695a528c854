"""Lines of predictions: valid ones come back as they were, others are one clear error."""

import copy
import json
import pathlib
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fnet_jax.errors import UserError
from fnet_jax.predictions import (
    RANKINGS,
    LineReader,
    Prediction,
    from_annotation,
    to_line,
)

OBJECTS = ("background", "person", "tall horse")
PREDICATES = ("background", "on", "next to")
READER = LineReader(OBJECTS, PREDICATES)
LINE = {
    "schema": "fnet-jax/scene-graph",
    "version": 1,
    "image": "é.jpg",
    "height": 40,
    "width": 50,
    "objects": [
        {"class": "person", "box": [0, 1.5, 9, 9], "score": 0.5},
        {"class": "tall horse", "box": [20, 20, 29.25, 39], "score": 1},
    ],
    "triplets": [
        {"subject": 0, "predicate": "on", "object": 1, "score": 0.25},
        {"subject": 1, "predicate": "next to", "object": 0, "score": 1e-9},
        {"subject": 0, "predicate": "next to", "object": 0},
    ],
    "rankings": {"fnet": [2, 0], "sgb": [], "sgb_unconstrained": [1, 0, 2]},
}


def places(value, path=()):
    """Paths to everything in a line."""
    yield path
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from places(value[key], (*path, key))


def changed(line, path, value):
    """`line` with another value at a path; ... deletes what is there."""
    if not path:
        return value
    line = copy.deepcopy(line)
    inner = line
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return line


def error_of(line) -> str:
    with pytest.raises(UserError) as caught:
        READER.read(line)
    return str(caught.value)


def test_valid_line():
    image, read = READER.read(LINE)
    assert image == "é.jpg"
    np.testing.assert_array_equal(read.boxes, [[0, 1.5, 9, 9], [20, 20, 29.25, 39]])
    assert read.boxes.dtype == read.scores.dtype == np.float32
    assert read.classes.tolist() == [1, 2] and read.classes.dtype == np.int64
    assert read.scores.tolist() == [0.5, 1.0]
    assert read.triplets.tolist() == [[0, 1, 1], [1, 0, 2], [0, 0, 2]]
    assert read.triplet_scores.tolist() == [0.25, np.float32(1e-9), 1.0]
    assert read.ranked("fnet").tolist() == [[0, 0, 2], [0, 1, 1]]
    assert read.ranked("sgb").shape == (0, 3)
    assert read.ranked("sgb_unconstrained").tolist() == [[1, 0, 2], [0, 1, 1], [0, 0, 2]]


@pytest.mark.parametrize(
    "path",
    [
        ("height",),
        ("width",),
        ("rankings",),
        ("rankings", "sgb"),
        ("objects", 0, "score"),
        ("triplets", 0, "score"),
    ],
    ids=str,
)
def test_what_may_be_missing(path):
    _, read = READER.read(changed(LINE, path, ...))
    assert len(read.boxes) == 2 and len(read.triplets) == 3


def test_documented_example():
    page = pathlib.Path(__file__).parent.parent / "docs" / "protocols.md"
    (example,) = re.findall(r"```json\n(.*)\n```", page.read_text(encoding="utf-8"))
    reader = LineReader(("background", "man", "horse"), ("background", "riding", "on"))
    image, read = reader.read(json.loads(example))
    assert image == "2343730.jpg" and read.ranked("sgb").tolist() == [[0, 1, 1]]
    assert read.ranked("fnet").tolist() == [[0, 1, 1], [0, 1, 2]]


def test_without_rankings_the_list_itself_is_ranked():
    _, read = READER.read(changed(LINE, ("rankings",), ...))
    for name in RANKINGS:
        np.testing.assert_array_equal(read.ranked(name), read.triplets)


def test_nothing_found_is_valid():
    line = {key: LINE[key] for key in ("schema", "version", "image")}
    _, read = READER.read({**line, "objects": [], "triplets": []})
    assert read.boxes.shape == (0, 4) and read.triplets.shape == (0, 3)
    assert read.classes.shape == read.scores.shape == read.triplet_scores.shape == (0,)
    _, read = READER.read({**line, "objects": [], "triplets": [], "rankings": {"fnet": []}})
    assert read.ranked("fnet").shape == (0, 3)


def test_unknown_fields_are_left_alone():
    line = changed(LINE, ("objects", 0, "mask"), "...")
    assert READER.read({**line, "source": {"of": "this"}})[0] == "é.jpg"


NUMBERS = (None, "1", True, [1], {}, float("nan"), float("inf"), -float("inf"), 1e9, 10**400)


@pytest.mark.parametrize(
    ("path", "values", "words"),
    [
        ((), (None, 1, "x", [], [LINE], True), ["JSON object"]),
        (("schema",), (..., None, 1, "fnet-jax/scene-graphs", []), ["schema", "version"]),
        (("version",), (..., None, 0, 2, "1", [1], True, 1.0), ["schema", "version"]),
        (("image",), (..., None, 7, True, ["x.jpg"], {}), ["'image'", "string"]),
        (("objects",), (..., None, {}, "x", 3), ["'objects'", "list"]),
        (("triplets",), (..., None, {}, "x", 3), ["'triplets'", "list"]),
        (("objects", 1), (None, [], "person", 3, {}), ["object 1", "'class'"]),
        (("objects", 1, "class"), (..., None, 2, True, ["person"]), ["object 1", "'class'"]),
        (("objects", 1, "class"), ("horse", "", "background"), ["object 1", "class"]),
        (("objects", 1, "box"), (..., None, "0 0 9 9", {"x1": 0}), ["object 1", "'box'"]),
        (("objects", 1, "box"), ([], [0, 0, 9], [0] * 5, [9, 0, 0, 9]), ["object 1", "box"]),
        (("objects", 1, "box"), ([0, 9, 9, 8.5], [[0, 0, 9, 9]]), ["object 1", "box"]),
        (("objects", 1, "box", 2), NUMBERS, ["object 1", "box"]),
        (("objects", 1, "score"), NUMBERS, ["object 1", "score"]),
        (("triplets", 2), (None, [0, 1, 0], "on", 3, {}), ["triplet 2", "'predicate'"]),
        (("triplets", 2, "predicate"), (..., None, 1, ["on"]), ["triplet 2", "'predicate'"]),
        (("triplets", 2, "predicate"), ("above", "background"), ["triplet 2", "predicate"]),
        (("triplets", 2, "subject"), (..., None, "0", 0.0, True), ["triplet 2", "'subject'"]),
        (("triplets", 2, "object"), (..., None, "0", 1.0, [0]), ["triplet 2", "'object'"]),
        (("triplets", 2, "subject"), (-1, 2, 10**400), ["triplet 2", "2 objects"]),
        (("triplets", 2, "object"), (-1, 2, 10**400), ["triplet 2", "2 objects"]),
        (("triplets", 2, "score"), NUMBERS, ["triplet 2", "score"]),
        (("rankings",), (None, [], [0, 1], "fnet", {"coco": []}), ["'rankings'", "fnet"]),
        (("rankings", "sgb"), (None, {}, "0", 0, [True], [0.0]), ["'sgb'", "3 triplets"]),
        (("rankings", "sgb"), ([-1], [3], [0, 10**400], [[0]]), ["'sgb'", "3 triplets"]),
        (("rankings", "sgb"), ([0, 1, 0],), ["'sgb'", "twice"]),
    ],
)
def test_mistakes_are_named(path, values, words):
    for value in values:
        message = error_of(changed(LINE, path, value))
        assert all(word in message for word in words), (value, message)
        assert len(message.splitlines()) == 1 and len(message) < 400


def test_what_is_wrong_is_quoted_briefly_and_in_one_line():
    for wrong in ("a\nb\u2028c\x85d", "\ud800", "x" * 10**6):
        for path in (("objects", 0, "class"), ("triplets", 0, "predicate")):
            message = error_of(changed(LINE, path, wrong))
            message.encode()
            assert len(message.splitlines()) == 1 and len(message) < 400
    assert "'zebra'" in error_of(changed(LINE, ("objects", 0, "class"), "zebra"))
    for box in ([0] * 10**5, ["x" * 10**6, 0, 9, 9], [{"a\n": 0}] * 4):
        message = error_of(changed(LINE, ("objects", 0, "box"), box))
        assert len(message.splitlines()) == 1 and len(message) < 400


@pytest.mark.parametrize("path", list(places(LINE)), ids=str)
def test_deep_nesting_in_every_place(path):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    line = changed(LINE, path, deep) if path else deep
    try:
        READER.read(line)
    except UserError as error:
        assert len(str(error)) < 400  # Some fields are not looked at.
    else:
        assert path in (("height",), ("width",))
    finally:
        while deep:  # Else Python frees it recursively.
            deep = deep.pop()


numbers = st.one_of(
    st.integers(), st.integers(-3, 5), st.floats(), st.sampled_from([10**400, -(10**400), 1e308])
)
words = st.one_of(st.text(max_size=5), st.sampled_from([*OBJECTS, *PREDICATES, *RANKINGS, *LINE]))
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)
EVERY_PLACE = [path for path in places(LINE) if path]


@hypothesis.settings(max_examples=1500, deadline=None, derandomize=True)
@hypothesis.given(
    st.lists(
        st.tuples(st.sampled_from(EVERY_PLACE), st.one_of(st.just(...), anything)),
        min_size=1,
        max_size=3,
    )
)
def test_a_prediction_or_one_error(changes):
    line = LINE
    for path, value in changes:
        try:
            line = changed(line, path, value)
        except (KeyError, IndexError, TypeError):  # An earlier change removed that place.
            continue
    check_prediction_or_error(json.loads(json.dumps(line)))


@hypothesis.settings(max_examples=500, deadline=None, derandomize=True)
@hypothesis.given(anything)
def test_a_prediction_or_one_error_of_anything(value):
    check_prediction_or_error(value)


def check_prediction_or_error(line):
    try:
        image, read = READER.read(line)
    except UserError as error:
        message = str(error)
        message.encode()
        assert message and len(message.splitlines()) == 1 and len(message) < 400
        return
    assert isinstance(image, str) and isinstance(read, Prediction)
    count, length = len(read.classes), len(read.triplets)
    assert read.boxes.shape == (count, 4) and np.isfinite(read.boxes).all()
    assert (read.boxes[:, 2:] >= read.boxes[:, :2]).all()
    assert read.scores.shape == (count,) and np.isfinite(read.scores).all()
    assert np.isin(read.classes, [1, 2]).all() and np.isin(read.triplets[:, 2], [1, 2]).all()
    assert ((read.triplets[:, :2] >= 0) & (read.triplets[:, :2] < count)).all()
    assert read.triplet_scores.shape == (length,) and np.isfinite(read.triplet_scores).all()
    for name in read.rankings:
        assert len(read.ranked(name)) <= length


@st.composite
def made(draw):
    """A Prediction with everything that a line can hold."""
    count, length = draw(st.integers(1, 5)), draw(st.integers(0, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    corners = np.sort(rng.uniform(-10, 2000, (count, 2, 2)), axis=1)
    rankings = draw(st.sets(st.sampled_from(RANKINGS)))
    return Prediction(
        boxes=corners.reshape(-1, 4).astype(np.float32),
        classes=rng.integers(1, 3, count),
        scores=rng.random(count).astype(np.float32),
        triplets=rng.integers((0, 0, 1), (count, count, 3), (length, 3)),
        triplet_scores=np.exp(rng.uniform(-40, 0, length)).astype(np.float32),
        rankings={name: rng.permutation(length)[: rng.integers(length + 1)] for name in rankings},
    )


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(made())
def test_round_trip(written):
    line = to_line(written, "é/1.jpg", np.int64(480), 640, OBJECTS, PREDICATES)
    text = json.dumps(line, allow_nan=False)
    image, read = READER.read(json.loads(text))
    assert image == "é/1.jpg"
    # To the last bit, so that overlaps come out the same.
    np.testing.assert_array_equal(read.boxes, written.boxes)
    np.testing.assert_array_equal(read.classes, written.classes)
    np.testing.assert_array_equal(read.triplets, written.triplets)
    np.testing.assert_allclose(read.scores, written.scores, rtol=1e-5)
    np.testing.assert_allclose(read.triplet_scores, written.triplet_scores, rtol=1e-5)
    assert set(read.rankings) == set(written.rankings)
    for name in RANKINGS:
        np.testing.assert_array_equal(read.ranked(name), written.ranked(name))
    again = to_line(read, image, 480, 640, OBJECTS, PREDICATES)
    assert json.dumps(again) == text


def test_annotation_as_a_prediction():
    record = {
        "boxes": np.array([[0, 0, 9, 9], [1, 2, 3, 4.0]]),
        "classes": np.array([2, 1]),
        "relationships": np.array([[0, 1, 2], [0, 1, 2], [1, 1, 1]]),
    }
    line = to_line(from_annotation(record), "a.jpg", 10, 10, OBJECTS, PREDICATES)
    assert "rankings" not in line
    _, read = READER.read(line)
    np.testing.assert_array_equal(read.boxes, record["boxes"])
    np.testing.assert_array_equal(read.triplets, record["relationships"])
    assert read.scores.tolist() == [1, 1] and read.triplet_scores.tolist() == [1, 1, 1]
