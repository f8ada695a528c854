"""Scoring a file of predictions on a real, tiny dataset: what counts, and what is refused."""

import json

import numpy as np
import pytest

from fnet_jax import results, score
from fnet_jax.datasets import load_builder
from fnet_jax.datasets.split import Split
from fnet_jax.errors import UserError
from fnet_jax.predictions import from_annotation, to_line
from fnet_jax.protocols import Scores

BOTH = ("fnet", "sgb")


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return Split(load_builder("shapes", "tiny", str(tmp_path_factory.mktemp("data"))), "test")


@pytest.fixture
def lines(split):
    """The annotations as predictions."""
    return [
        to_line(
            from_annotation(record),
            record["filename"],
            record["height"],
            record["width"],
            split.object_classes,
            split.predicates,
        )
        for record in map(split.record, range(len(split)))
    ]


def text_of(lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def run(split, tmp_path):
    def run(content, task="sgdet", protocols=BOTH):
        path = tmp_path / "predictions.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        scores = Scores(protocols, len(split.predicates), split.training, task)
        return score.score_file(path, split, scores)

    return run


@pytest.fixture
def error_of(run, tmp_path):
    def error_of(content, *arguments):
        with pytest.raises(UserError) as caught:
            run(content, *arguments)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        assert message.startswith(str(tmp_path / "predictions.jsonl"))
        return message.removeprefix(str(tmp_path / "predictions.jsonl"))

    return error_of


@pytest.mark.parametrize("task", ["sgdet", "sgcls", "predcls"])
def test_annotations_score_one(split, lines, run, task):
    """The drawn scenes have one predicate on a pair and no repeated annotation."""
    metrics = run(text_of(lines), task)
    rows = np.concatenate([split.record(i)["relationships"] for i in range(len(split))])
    assert metrics["task"] == task and metrics["images"] == 8
    assert metrics["annotated_relationships"] == metrics["sgb_annotated_relationships"] == len(rows)
    ones = [f"{kind}_recall@{n}" for kind in ("relationship", "phrase") for n in (50, 100)]
    ones += [f"sgb_{kind}@{k}" for kind in ("R", "ngR") for k in (50, 100)]
    if task != "sgdet":
        ones += ["sgb_A@50", "sgb_A@100"]
    assert {name: metrics[name] for name in ones} == pytest.approx(dict.fromkeys(ones, 1.0))
    # A predicate that never occurs counts 0.
    occurring = len(np.unique(rows[:, 2])) / (len(split.predicates) - 1)
    assert metrics["sgb_mR@100"] == pytest.approx(occurring)
    assert metrics["sgb_zero_shot_images"] == sum(map(has_new_triplet, [split] * 8, range(8))) > 0
    assert metrics["sgb_zR@100"] == pytest.approx(1.0)


def has_new_triplet(split, index):
    record = split.record(index)
    labels = record["classes"]
    return any(
        (labels[s], p, labels[o]) not in split.training.triplets
        for s, o, p in record["relationships"]
    )


def test_wrong_predictions_score_less(lines, run):
    for line in lines[:4]:
        line["triplets"] = line["triplets"][:1]
    for line in lines[4:]:
        line["triplets"] = []
    metrics = run(text_of(lines))
    assert 0 < metrics["relationship_recall@50"] < metrics["sgb_R@50"] < 0.5
    assert metrics["sgb_images"] == 4 and metrics["images"] == 8


def test_order_of_lines_does_not_matter(lines, run):
    for index, line in enumerate(lines):
        line["triplets"] = line["triplets"][index % 3 :]
    straight = run(text_of(lines))
    assert run(text_of(lines[::-1])) == pytest.approx(straight)
    assert 0 < straight["sgb_R@50"] < 1


def test_what_does_not_matter(lines, run):
    expected = run(text_of(lines))
    blank = "\n" + "\r\n  \n".join(json.dumps(line) for line in lines)  # no line end at the end
    assert run(blank) == expected
    for line in lines:
        del line["height"], line["width"]
        for item in (*line["objects"], *line["triplets"]):
            item["score"] = -3.5
    assert run(text_of(lines)) == expected
    assert run(b"\xef\xbb\xbf" + text_of(lines).encode()) == expected  # byte order mark


def test_nothing_found_on_any_image(lines, run):
    for line in lines:
        line["objects"] = line["triplets"] = []
    for task in ("sgdet", "sgcls", "predcls"):
        metrics = run(text_of(lines), task)
        assert metrics["relationship_recall@100"] == metrics["sgb_R@100"] == 0.0
        assert metrics["sgb_images"] == 0 and metrics["annotated_relationships"] > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda line: line.update(version=2), ["version"]),
        (lambda line: line.pop("image"), ["'image'"]),
        (lambda line: line.update(image="nowhere.jpg"), ["'nowhere.jpg'", "test", "shapes"]),
        (lambda line: line.update(image="test_00000.jpg"), ["'test_00000.jpg'", "before"]),
        (lambda line: line["objects"][1].update({"class": "hexagon"}), ["object 1", "'hexagon'"]),
        (lambda line: line["objects"][1].update(box=[3, 3, 1, 1]), ["object 1", "box"]),
        (lambda line: line["triplets"][0].update(object=99), ["triplet 0", "99"]),
        (lambda line: line.update(rankings={"fnet": [10**6]}), ["'fnet'"]),
    ],
)
def test_a_bad_line_is_named_by_number(lines, error_of, change, words):
    change(lines[2])
    message = error_of(text_of(lines))
    assert message.startswith(", line 3: ")
    assert all(word in message for word in words), message


def test_empty_lines_count_in_the_number(lines, error_of):
    lines[2]["version"] = 2
    assert error_of("\n\n" + text_of(lines)).startswith(", line 5: ")


@pytest.mark.parametrize(
    "junk",
    [
        b"{",
        b"[1, 2",
        b"nothing",
        b"\xff\xfe{}",
        b'{"image": "\xff"}',
        b"[" * 200_000,
        b'{"x": ' * 200_000,
        b"9" * 5000,
        b"\x00",
    ],
    ids=lambda junk: repr(junk[:12]),
)
def test_junk(lines, error_of, junk):
    content = text_of(lines[:2]).encode() + junk + b"\n" + text_of(lines[2:]).encode()
    message = error_of(content)
    assert message.startswith(", line 3: it is not JSON (")
    assert len(message) < 300


@pytest.mark.parametrize("value", ["null", "[]", "7", '"x"', "NaN"])
def test_json_that_is_no_object(lines, error_of, value):
    assert error_of(value + "\n" + text_of(lines)) == ", line 1: it is not a JSON object"


def test_truncated_file(lines, error_of):
    text = text_of(lines)
    assert error_of(text[:-50]).startswith(", line 8: it is not JSON (")
    message = error_of(text_of(lines[:5]))
    assert message.startswith(" lacks 3 of 8 images, 'test_00005.jpg' first")


def test_missing_images(lines, error_of):
    del lines[4], lines[1]
    assert error_of(text_of(lines)).startswith(" lacks 2 of 8 images, 'test_00001.jpg' first")
    assert error_of("").startswith(" lacks 8 of 8 images, 'test_00000.jpg' first")


def test_a_repeated_line_is_refused_even_if_equal(lines, error_of):
    message = error_of(text_of([*lines, lines[3]]))
    assert message == ", line 9: the image 'test_00003.jpg' was predicted before"


def test_given_boxes_are_checked_by_line(lines, error_of, run):
    lines[6]["objects"].reverse()
    message = error_of(text_of(lines), "sgcls")
    assert message.startswith(", line 7: task sgcls gives the")
    run(text_of(lines), "sgdet")


@pytest.mark.parametrize(("name", "reason"), [("none.jsonl", "No such file"), ("", "directory")])
def test_unreadable_file(split, tmp_path, name, reason):
    scores = Scores(BOTH, len(split.predicates), split.training)
    with pytest.raises(UserError, match=f"^--predictions: .*{reason}"):
        score.score_file(tmp_path / name, split, scores)


def test_one_protocol(lines, run):
    assert "sgb_R@20" not in run(text_of(lines), "sgdet", ("fnet",))
    assert "relationship_recall@50" not in run(text_of(lines), "sgdet", ("sgb",))


def test_metrics_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"score\.json cannot be written \("):
        results.write_metrics(tmp_path / "file" / "score.json", {"images": 8})
