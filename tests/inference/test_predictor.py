"""The predictor from a checkpoint alone, its graphs, and objects given by the user."""

import json

import jax
import networkx as nx
import numpy as np
import pytest

from fnet_jax import SceneGraph, SceneGraphPredictor
from fnet_jax.detect import detect
from fnet_jax.errors import UserError
from fnet_jax.inference.given_boxes import UNKNOWN, read_boxes
from fnet_jax.inference.predictor import ImageFormat
from fnet_jax.predictions import LineReader, from_graph, to_line
from tests.inference.checkpoints import OBJECTS, PREDICATES, save_random, small_config

RNG = np.random.default_rng(3)
WIDE = RNG.integers(0, 256, (60, 90, 3)).astype(np.uint8)
HIGH = RNG.integers(0, 256, (300, 210, 3)).astype(np.uint8)
COMPILATIONS = []


def _note(event: str, seconds: float, **_) -> None:
    if event.endswith("backend_compile_duration"):
        COMPILATIONS.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_note)
BOXES = np.array([[2, 3, 40, 50], [30, 10, 80, 55], [5, 5, 20, 20]], np.float32)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """These programs run for milliseconds and would compile for many seconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def predictor(workdir):
    predictor = SceneGraphPredictor.from_checkpoint(workdir)
    predictor(WIDE)
    return predictor


def test_it_is_detection_by_other_names(predictor):
    """The graph is that of `detect` on the prepared image, in the schema of the evaluation."""
    (graph,) = predictor([HIGH])
    prepared = predictor.prepare(HIGH)
    assert prepared.example["image"].shape == (96, 64, 3)
    run = jax.jit(lambda p, x: detect(predictor.model, p, x, predictor.options))
    found = jax.device_get(run(predictor.params, prepared.example))
    line = to_line(from_graph(found), "", 300, 210, OBJECTS, PREDICATES)
    assert len(line["objects"]) == 12 and len(line["triplets"]) == 100
    mine = graph.to_dict()
    del line["rankings"]
    assert [t["subject"] for t in mine["triplets"]] == [t["subject"] for t in line["triplets"]]
    for part, fields in (("objects", ("box", "score")), ("triplets", ("score",))):
        for field in fields:
            np.testing.assert_allclose(
                [item[field] for item in mine[part]],
                [item[field] for item in line[part]],
                rtol=1e-5,
            )
    name, prediction = LineReader(OBJECTS, PREDICATES).read(json.loads(json.dumps(mine)))
    assert name == "" and len(prediction.triplets) == 100
    assert SceneGraph.from_dict(mine) == graph


def test_a_list_is_its_images_one_by_one(predictor, tmp_path):
    from PIL import Image

    path = tmp_path / "wide.png"
    Image.fromarray(WIDE).save(path)
    graphs = predictor([HIGH, path, WIDE])
    assert [graph.image for graph in graphs] == ["", "wide.png", ""]
    assert [(graph.height, graph.width) for graph in graphs] == [(300, 210), (60, 90), (60, 90)]
    assert graphs[1].objects == graphs[2].objects and graphs[1].triplets == graphs[2].triplets
    assert predictor(HIGH) == graphs[0] and predictor(str(path)) == graphs[1]
    assert predictor([]) == []


def test_sizes_within_a_bucket_share_a_program(predictor):
    assert COMPILATIONS  # of the first image
    COMPILATIONS.clear()
    for size in ((61, 80), (200, 290), (64, 96), (10, 15)):
        predictor(np.zeros((*size, 3), np.uint8))
    assert not COMPILATIONS


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (1, 500), (500, 1), (70, 70), (641, 960)])
def test_every_size_has_a_bucket(size):
    """Also where the dataset's images all lie on their side."""
    section = small_config().image
    section.buckets = ((64, 80),)
    image_format = ImageFormat.of(section)
    padded, info = image_format.prepare(np.zeros((*size, 3), np.uint8))
    assert padded.shape[:2] in image_format.buckets
    assert (info[:2] <= padded.shape[:2]).all() and info[:2].min() >= 1


def test_graph_for_programs(predictor):
    graph = predictor(WIDE)
    net = graph.to_networkx()
    assert isinstance(net, nx.MultiDiGraph)
    assert net.number_of_nodes() == len(graph.objects)
    assert net.number_of_edges() == len(graph.triplets)
    first = graph.triplets[0]
    edge = net.edges[first.subject, first.object, first.predicate]
    assert edge == {"predicate": first.predicate, "score": first.score}
    assert net.nodes[first.subject]["name"] == graph.objects[first.subject].name
    lines = str(graph).splitlines()
    assert len(lines) == 10
    assert lines[0].startswith(f"{graph.objects[first.subject].name} - {first.predicate} - ")


def test_plot(predictor, tmp_path):
    import cv2

    predictor(WIDE).plot(WIDE, tmp_path / "deep" / "picture.png", top_k=5)
    picture = cv2.imread(str(tmp_path / "deep" / "picture.png"))
    assert picture.shape[0] > 300 and picture.std() > 10


def test_given_boxes_are_the_objects(predictor):
    graph = predictor(WIDE, boxes=BOXES)
    np.testing.assert_allclose([o.box for o in graph.objects], BOXES, atol=1e-4)
    assert {(t.subject, t.object) for t in graph.triplets} <= {
        (i, j) for i in range(3) for j in range(3)
    }
    assert len(graph.triplets) > 6
    labelled = predictor(WIDE, boxes=BOXES, classes=["hat", None, "dog"])
    assert [o.name for o in labelled.objects] == ["hat", graph.objects[1].name, "dog"]
    assert labelled.objects[0].score == labelled.objects[2].score == 1.0
    assert labelled.objects[1].score < 1.0


def test_given_boxes_of_several_images(predictor):
    large = np.zeros((200, 290, 3), np.uint8)
    some = predictor([WIDE, large, WIDE], boxes=[BOXES, BOXES[:1], np.zeros((0, 4))])
    assert [len(graph.objects) for graph in some] == [3, 1, 0]
    assert some[0] == predictor(WIDE, boxes=BOXES)
    assert some[2].triplets == ()


def test_as_many_boxes_as_there_are_slots(predictor):
    """Given objects are kept even where the network proposes fewer."""
    many = np.stack([[i, i, i + 20, i + 20] for i in range(12)]).astype(np.float32)
    graph = predictor(np.zeros((60, 90, 3), np.uint8), boxes=many)
    np.testing.assert_allclose([o.box for o in graph.objects], many, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": WIDE[..., 0]}, "uint8 in RGB"),
        ({"images": WIDE.astype(np.float32)}, "float32"),
        ({"images": "/nowhere.jpg"}, "/nowhere.jpg: there is no such file"),
        ({"images": WIDE, "boxes": [[0, 0, 9]]}, "four numbers"),
        ({"images": WIDE, "boxes": [[9, 0, 0, 9]]}, "object 0 has the box"),
        ({"images": WIDE, "boxes": [[95, 0, 99, 9]]}, "outside of the image of 90 x 60"),
        ({"images": WIDE, "boxes": np.tile(BOXES, (5, 1))}, "at most 12"),
        ({"images": WIDE, "boxes": BOXES, "classes": ["cat"]}, "3 boxes, but 1 classes"),
        ({"images": WIDE, "boxes": BOXES, "classes": ["cat", "cow", None]}, "'cow'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes(predictor, arguments, words):
    with pytest.raises(UserError, match=words) as error:
        predictor(**arguments)
    assert "\n" not in str(error.value)


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no workdir"):
        SceneGraphPredictor.from_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="No checkpoint at"):
        SceneGraphPredictor.from_checkpoint(tmp_path)


def test_a_config_chooses_how_to_look(workdir):
    config = small_config()
    config.test.max_objects, config.test.post_nms = 5, 10
    options = SceneGraphPredictor.from_checkpoint(workdir, config).options
    assert options.max_objects == 5 and options.proposals.post_nms == 10


def test_boxes_file(tmp_path, predictor):
    path = tmp_path / "boxes.jsonl"
    lines = [
        {
            "image": "a.jpg",
            "objects": [{"box": [1, 2, 3, 4], "class": "cat"}, {"box": [1, 2, 3, 4]}],
        },
        predictor(WIDE).to_dict(),
        {"image": "none.jpg", "objects": []},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    found = read_boxes(path, OBJECTS)
    assert list(found) == ["a.jpg", "", "none.jpg"]
    assert found["a.jpg"].classes.tolist() == [1, UNKNOWN]
    np.testing.assert_array_equal(found["a.jpg"].boxes, [[1, 2, 3, 4]] * 2)
    assert len(found[""].boxes) == 12 and found["none.jpg"].boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 1: it is no JSON"),
        ("[" * 100_000, "line 1: it is no JSON"),
        ("\n[]", 'line 2: it needs "image"'),
        ('{"image": "a"}', 'it needs "objects"'),
        ('{"image": "a", "objects": [{"box": [1, 2, 3]}]}', "object 0 has the box"),
        ('{"image": "a", "objects": [{"box": [1, 2, 3, null]}]}', "object 0 has the box"),
        ('{"image": "a", "objects": [{"box": [1, 2, 3, NaN]}]}', "object 0 has the box"),
        ('{"image": "a", "objects": [{"box": [1, 2, 3, 4], "class": 3}]}', "not a name"),
        ('{"image": "a", "objects": [{"box": [1, 2, 3, 4], "class": "cow"}]}', "'cow'"),
        ('{"image": "a", "objects": []}\n{"image": "a", "objects": []}', "line 2: 'a' has"),
    ],
    ids=range(10),
)
def test_bad_boxes_file(tmp_path, text, words):
    path = tmp_path / "boxes.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=f"--boxes: .*boxes.jsonl, .*{words}"):
        read_boxes(path, OBJECTS)


def test_missing_boxes_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_boxes(tmp_path / "none.jsonl", OBJECTS)
