"""Modes of the program that share one trained checkpoint: all tasks, evaluated and scored again."""

import json

import pytest

from tests.test_cli import SHAPES, run

# What only an evaluation knows: it sees the network's boxes, not only the graph.
EVALUATION_ONLY = {
    "mAP",
    "annotated_objects",
    "annotated_classes",
    "rpn_recall@50",
    "subgraphs_average",
    "subgraphs_maximum",
    "overflowed_pairs",
    "overflowed_images",
    "seconds_per_image",
    "checkpoint",
    "step",
}
TASKS = {
    "sgdet": (),
    "sgcls": ("--config.test.use_gt_boxes=True",),
    "predcls": ("--config.test.use_gt_boxes=True", "--config.test.use_gt_labels=True"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the dataset and a run of two training steps, and the rest in another process."""
    folder = tmp_path_factory.mktemp("modes")
    for steps in (2, 1000):
        done = run(
            *common(folder),
            "--mode=train",
            f"--workdir={folder / 'run'}",
            f"--config.train.max_steps={steps}",
            "--config.train.epochs=1",
            "--config.train.log_every_steps=1",
        )
        assert done.returncode == 0, done.stderr
    return folder


def test_training_was_resumed_and_its_epoch_evaluated(folder):
    lines = (folder / "run" / "train_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 25))
    (line,) = (folder / "run" / "eval_log.jsonl").read_text().splitlines()
    evaluation = json.loads(line)
    assert evaluation["step"] == 24 and evaluation["images"] == 4
    assert 0 <= evaluation["relationship_recall@50"] <= 1


def common(folder):
    return (
        *SHAPES,
        f"--config.dataset.data_dir={folder / 'data'}",
        "--config.dataset.builder_config=tiny",
        "--config.model.subgraph_capacities=(128,)",
        "--config.test.max_objects=24",
        "--config.test.pictures=1",
    )


@pytest.mark.parametrize("task", TASKS)
def test_scoring_gives_what_evaluation_gave(folder, task):
    done = run(*common(folder), "--mode=eval", f"--workdir={folder / 'run'}", *TASKS[task])
    assert done.returncode == 0, done.stderr
    results = folder / "run" / "evaluation" / ("test" if task == "sgdet" else f"test_{task}")
    evaluated = json.loads((results / "metrics.json").read_text())
    graphs = [json.loads(line) for line in (results / "graphs.jsonl").read_text().splitlines()]
    assert len(graphs) == 8 and any(graph["triplets"] for graph in graphs)
    assert all(len(graph["objects"]) <= 24 for graph in graphs)
    assert all(len(graph["rankings"]["fnet"]) <= 100 for graph in graphs)
    assert "data:image/jpeg" in (results / "index.html").read_text()
    (picture,) = (results / "pictures").glob("*.png")
    assert str(picture) in done.stdout

    done = run(
        *common(folder),
        "--mode=score",
        f"--predictions={results / 'graphs.jsonl'}",
        "--protocol=fnet,sgb",
        f"--workdir={folder / task}",
        *TASKS[task],
    )
    assert done.returncode == 0, done.stderr
    assert str(folder / task / "score.json") in done.stdout
    scored = json.loads((folder / task / "score.json").read_text())
    assert scored == {key: evaluated[key] for key in evaluated.keys() - EVALUATION_ONLY}
    assert scored["task"] == task and scored["images"] == 8

    names = [f"sgb_{name}@{k}" for name in ("R", "ngR", "mR", "zR") for k in (20, 50, 100)]
    names += [f"sgb_mR@{k}_{part}" for k in (20, 50, 100) for part in ("head", "body", "tail")]
    names += [f"{kind}_recall@{n}" for kind in ("predicate", "phrase") for n in (50, 100)]
    assert all(0 <= scored[name] <= 1 for name in names)
    for k in (20, 50, 100):
        assert (f"sgb_A@{k}" in scored) == (task != "sgdet")
    assert len(scored["per_predicate"]) == 9
    if task == "predcls":
        check_predcls(scored, graphs)


def check_predcls(scored, graphs):
    """With boxes and classes given even an untrained network finds something."""
    assert scored["sgb_ngR@100"] > max(0.3, scored["sgb_R@100"])
    assert scored["sgb_A@100"] >= scored["sgb_A@20"]
    annotated = sum(row["annotated"] for row in scored["per_predicate"].values())
    assert annotated == scored["sgb_annotated_relationships"] > 0
    for graph in graphs:
        places = graph["rankings"]["sgb"]
        pairs = [(graph["triplets"][i]["subject"], graph["triplets"][i]["object"]) for i in places]
        assert len(set(pairs)) == len(pairs)
        assert all(subject != object_ for subject, object_ in pairs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode=score"], ["--predictions is missing", "--mode score"]),
        (["--mode=train", "--workdir=x", "--predictions=y"], ["--predictions is for --mode score"]),
        (["--mode=eval", "--workdir=x", "--predictions=y"], ["--predictions is for --mode score"]),
        (["--mode=train", "--workdir=x", "--protocol=sgb"], ["--protocol", "eval or score"]),
        (["--mode=score", "--predictions=y", "--checkpoint=z"], ["--checkpoint", "eval"]),
        (["--mode=score", "--predictions=y", "--protocol=sgb,vg"], ["vg is unknown", "fnet, sgb"]),
        (["--mode=score", "--predictions=y", "--protocol="], ["none is named", "fnet, sgb"]),
        (["--mode=score", "--predictions=/nowhere.jsonl"], ["/nowhere.jsonl", "No such file"]),
        (
            ["--mode=score", "--predictions=y", "--config.test.use_gt_labels=True"],
            ["use_gt_boxes=True"],
        ),
    ],
    ids=str,
)
def test_mistakes(folder, arguments, words):
    done = run(*common(folder), *arguments)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in done.stderr
    assert all(word in last for word in words), last


def test_a_bad_line(folder, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n{}\n")
    done = run(*common(folder), "--mode=score", f"--predictions={path}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: {path}, line 2: it needs " in done.stderr.splitlines()[-1]
