"""An exported network: what its file holds, and that it needs no part of this package to run."""

import dataclasses
import functools
import io
import json
import pathlib
import runpy
import subprocess
import sys
import zipfile
from concurrent import futures

import jax
import numpy as np
import pytest
from jax import export as jax_export

from fnet_jax import detect as detection
from fnet_jax import image_ops
from fnet_jax.detect import ProposalOptions, detect
from fnet_jax.errors import UserError
from fnet_jax.inference import export
from tests.small_model import OBJECT_CLASSES, PREDICATES, QUICK, random_model

SCRIPT = pathlib.Path(__file__).parents[2] / "docs" / "run_exported.py"
OPTIONS = detection.TestOptions(
    proposals=ProposalOptions(pre_nms=64, post_nms=16, min_size=4.0),
    max_objects=12,
    subgraph_capacities=(64,),
    subgraph_nms=0.7,
    max_triplets=30,
)
BUCKETS = ((64, 96), (96, 64))
IMAGE = {"test_scale": 60, "max_size": 96, "color_order": "bgr"}
OBJECTS = ["background", *(f"thing {i}" for i in range(1, OBJECT_CLASSES))]
RELATIONS = ["nothing", *(f"relates {i}" for i in range(1, PREDICATES))]

# Original sizes: shrunk and enlarged, the short side at 60 or the long one at 96, both buckets.
SIZES = ((120, 170), (40, 50), (60, 90), (100, 200), (170, 120), (95, 70))

# Runs the script with an interpreter that has JAX, what JAX needs, and nothing else.
ONLY_JAX = """
import json, runpy, sys

ALLOWED = {"jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy", "flatbuffers"}
ALLOWED |= sys.stdlib_module_names

class Only:
    finders = list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in ALLOWED or top.startswith("_sysconfigdata"):
            found = (finder.find_spec(name, path, target) for finder in self.finders)
            return next((spec for spec in found if spec), None)

sys.meta_path[:] = [Only()]
for name in ("fnet_jax", "flax", "optax", "cv2", "tqdm", "PIL", "tests"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} could be imported")
"""
RUN_ALL = """
import numpy as np

script, artifact, output, *images = sys.argv[1:]
names = runpy.run_path(script)
network = names["Network"](artifact)
for index, path in enumerate(images):
    image = names["read_image"](path)
    _, padded, info = network.prepare(image)
    np.savez(f"{output}/{index}.npz", image=padded, im_info=info, **network(image))
"""
RUN_MAIN = """
script, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


def network():
    return random_model(relation_module=False)


def export_small(path, **changes):
    model, params = network()
    fields = {
        "buckets": BUCKETS,
        "image": IMAGE,
        "object_names": OBJECTS,
        "predicate_names": RELATIONS,
    }
    options = changes.pop("options", OPTIONS)
    return export.export_program(path, model, params, options, **(fields | changes))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "small.fnet.zip"
    return path, export_small(path, facts={"step": 7})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = []
    for size in SIZES:
        # Coarse blocks: noise alone would leave nothing to tell when it is resized.
        blocks = rng.integers(0, 256, (size[0] // 10 + 1, size[1] // 10 + 1, 3), np.uint8)
        image = blocks.repeat(10, axis=0).repeat(10, axis=1)[: size[0], : size[1]]
        paths.append(folder / f"{size[0]}x{size[1]}.npy")
        np.save(paths[-1], image)
    return paths


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def only_jax(tmp_path_factory):
    """Runs code in another process, where little can be imported."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(f"--{name}={value}".lower() for name, value in QUICK.items()),
        # The programs of one process need not be compiled again in the next.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def run(code, *arguments):
        command = [sys.executable, "-I", "-c", ONLY_JAX + code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return run


@functools.cache
def program():
    model, _ = network()
    run = functools.partial(detect, model, options=OPTIONS)
    return jax.jit(run, compiler_options=QUICK)


def detected(image, im_info):
    """The graph by the package itself; the model's arrays in NumPy."""
    graph = program()(network()[1], {"image": image, "im_info": im_info})
    return {name: np.asarray(getattr(graph, name)) for name in export.OUTPUTS}


def assert_same(actual, expected):
    for name, values in expected.items():
        assert actual[name].dtype == values.dtype, name
        if np.issubdtype(values.dtype, np.floating):
            np.testing.assert_allclose(actual[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(actual[name], values, err_msg=name)


def manifest_of(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("manifest.json"))


def programs_of(path):
    with zipfile.ZipFile(path) as archive:
        return [
            jax_export.deserialize(bytearray(archive.read(entry["file"])))
            for entry in manifest_of(path)["programs"]
        ]


def test_another_process_finds_the_same_graphs(artifact, images, only_jax, tmp_path):
    with futures.ThreadPoolExecutor() as pool:
        other = pool.submit(only_jax, RUN_ALL, SCRIPT, artifact[0], tmp_path, *images)
        for bucket in BUCKETS:  # compiled in the meantime
            detected(np.zeros((*bucket, 3), np.uint8), np.array([60, 60, 1, 60, 60], np.float32))
        done = other.result()
    assert done.returncode == 0, done.stderr
    seen = []
    for index, path in enumerate(images):
        with np.load(tmp_path / f"{index}.npz") as arrays:
            found = dict(arrays)
        expected = detected(found["image"], found["im_info"])
        assert expected["object_mask"].any() and expected["triplet_mask"].any()
        assert_same(found, expected)
        seen.append((found["image"].shape[:2], tuple(found["im_info"][:2])))
        # Its input is this package's own, but for the rounding of resized pixels.
        image = np.load(path)
        factor = float(image_ops.resize_factor(image.shape[:2], 60, 96))
        resized = image_ops.resize(image, factor)[..., ::-1]
        bucket = image_ops.smallest_bucket(BUCKETS, *resized.shape[:2])
        difference = image_ops.pad(resized, bucket).astype(int) - found["image"]
        assert abs(difference).max() <= 1
        info = np.array([*resized.shape[:2], factor, *image.shape[:2]], np.float32)
        np.testing.assert_array_equal(found["im_info"], info)
    assert {bucket for bucket, _ in seen} == set(BUCKETS)
    assert len(set(seen)) == len(SIZES)


def test_script_prints_and_writes_named_triplets(artifact, images, script, only_jax, tmp_path):
    output = tmp_path / "graph.json"
    done = only_jax(RUN_MAIN, SCRIPT, artifact[0], images[0], "--output", output)
    assert done.returncode == 0, done.stderr
    written = json.loads(output.read_text())
    _, padded, info = script["Network"](artifact[0]).prepare(np.load(images[0]))
    graph = detected(padded, info)
    used = graph["object_mask"]
    assert written["schema"] == "fnet-jax/scene-graph" and written["image"] == images[0].name
    assert (written["height"], written["width"]) == SIZES[0]
    assert [item["class"] for item in written["objects"]] == [
        OBJECTS[index] for index in graph["classes"][used]
    ]
    boxes = [item["box"] for item in written["objects"]]
    np.testing.assert_allclose(boxes, graph["boxes"][used], rtol=1e-5, atol=1e-5)
    ranked = graph["triplet_mask"]
    assert [item["predicate"] for item in written["triplets"]] == [
        RELATIONS[index] for index in graph["predicates"][ranked]
    ]
    slots = np.flatnonzero(used)
    for end, key in (("subject", "subjects"), ("object", "objects")):
        ends = [slots[item[end]] for item in written["triplets"]]
        np.testing.assert_array_equal(ends, graph[key][ranked])
    scores = [item["score"] for item in written["triplets"]]
    np.testing.assert_allclose(scores, graph["triplet_scores"][ranked], rtol=1e-5)
    lines = done.stdout.splitlines()
    assert len(lines) == len(scores)
    first, names = written["triplets"][0], [item["class"] for item in written["objects"]]
    subject, other = names[first["subject"]], names[first["object"]]
    assert lines[0] == f"{scores[0]:.4f}  {subject} - {first['predicate']} - {other}"


def test_programs_hold_all_platforms_and_no_custom_call(artifact):
    for exported in programs_of(artifact[0]):
        assert exported.platforms == ("cpu", "cuda", "tpu")
        assert exported.disabled_safety_checks == ()
        text = exported.mlir_module()
        assert "_platform_index" in text and "stablehlo.case" in text
        assert "custom_call" not in text


def test_weights_are_stored_once_and_are_arguments(artifact):
    with zipfile.ZipFile(artifact[0]) as archive:
        weights = dict(np.load(io.BytesIO(archive.read("weights.npz"))))
    _, params = network()
    assert list(weights) == sorted(weights)
    np.testing.assert_array_equal(
        weights["backbone/conv1_1/kernel"], params["backbone"]["conv1_1"]["kernel"]
    )
    assert len(weights) == len(jax.tree.leaves(params))
    for exported, bucket in zip(programs_of(artifact[0]), BUCKETS, strict=True):
        (named, image, info), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        assert {k: v.shape for k, v in named.items()} == {k: v.shape for k, v in weights.items()}
        assert (image.shape, image.dtype) == ((*bucket, 3), np.uint8)
        assert (info.shape, info.dtype) == ((5,), np.float32)
        assert len(exported.module_kept_var_idx) == len(weights) + 2


def test_manifest_says_what_the_file_holds(artifact):
    path, written = artifact
    manifest = manifest_of(path)
    assert (manifest["format"], manifest["version"]) == (export.FORMAT, export.VERSION)
    assert manifest["jax_version"] == jax.__version__
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert {key: manifest[key] for key in IMAGE} == IMAGE
    assert manifest["object_names"] == OBJECTS and manifest["predicate_names"] == RELATIONS
    assert manifest["facts"] == {"step": 7}
    model, params = network()
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    for entry, program_, bucket in zip(manifest["programs"], written, BUCKETS, strict=True):
        assert (entry["height"], entry["width"]) == bucket == (program_.height, program_.width)
        assert sizes[entry["file"]] == program_.size and program_.seconds > 0
        example = {
            "image": jax.ShapeDtypeStruct((*bucket, 3), np.uint8),
            "im_info": jax.ShapeDtypeStruct((5,), np.float32),
        }
        graph = jax.eval_shape(functools.partial(detect, model, options=OPTIONS), params, example)
        for name in export.OUTPUTS:
            shape = getattr(graph, name)
            described = {"shape": list(shape.shape), "dtype": str(shape.dtype)}
            assert entry["outputs"][name] == described
    versions = [exported.calling_convention_version for exported in programs_of(path)]
    assert versions == [entry["calling_convention_version"] for entry in manifest["programs"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"platforms": ("cpu", "gpu")}, "platforms are cpu, gpu"),
        ({"platforms": ()}, "platforms are none"),
        ({"buckets": ()}, "image.buckets"),
        ({"buckets": ((64, 8),)}, "image.buckets"),
        ({"options": dataclasses.replace(OPTIONS, use_gt_boxes=True)}, "use_gt_boxes"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(changes, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        export_small(tmp_path / "x.fnet.zip", **changes)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_names_are_as_many_as_classes(tmp_path):
    with pytest.raises(ValueError, match="4 names for 5 classes"):
        export_small(tmp_path / "x.fnet.zip", object_names=OBJECTS[1:])


def test_path_that_cannot_be_written(tmp_path, monkeypatch):
    # It is known before any program is made.
    monkeypatch.setattr(export, "_lowered", lambda *_: pytest.fail("too late"))
    with pytest.raises(UserError, match="cannot be written"):
        export_small(tmp_path / "nowhere" / "x.fnet.zip")
    with pytest.raises(UserError, match="is a folder"):
        export_small(tmp_path)


def test_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.fnet.zip"
    path.write_bytes(b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_lowered", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_small(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [(37, 53), (200, 120), (64, 64), (2, 9), (480, 333)])
@pytest.mark.parametrize("factor", [0.31, 0.5, 0.999, 1.0, 1.6, 3.75])
def test_script_resizes_as_opencv_does(script, size, factor):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    resized = script["resize"](image, factor)
    expected = image_ops.resize(image, factor)
    assert resized.shape == expected.shape and resized.dtype == np.uint8
    assert abs(resized.astype(int) - expected).max() <= 1


def message_of(monkeypatch, *arguments):
    """What the script has to say in the end."""
    monkeypatch.setattr(sys, "argv", ["run_exported.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    message = caught.value.code
    assert message.startswith("run_exported: ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((80, 80, 3), np.float32), "(80, 80, 3) float32"),
        (np.zeros((80, 80), np.uint8), "(80, 80) uint8"),
        (np.zeros((80, 80, 4), np.uint8), "(80, 80, 4) uint8"),
        (np.zeros((0, 80, 3), np.uint8), "(0, 80, 3) uint8"),
        (np.zeros((80, 81, 3), object), "allow_pickle"),
    ],
)
def test_wrong_image_is_said_in_one_line(artifact, array, said, tmp_path, monkeypatch):
    path = tmp_path / "image.npy"
    np.save(path, array)
    assert said in message_of(monkeypatch, artifact[0], path)


def test_image_that_no_program_takes(artifact, tmp_path, images, monkeypatch):
    path = tmp_path / "one.fnet.zip"
    export_small(path, buckets=BUCKETS[:1], platforms=("cpu",))
    # 85 x 60 pixels lie flat in the other bucket only.
    assert "no program takes 85 x 60" in message_of(monkeypatch, path, images[4])


RIGHT_FORMAT = '{"format": "fnet-jax/exported", "version": 1}'


def truncated(data, _):
    return data[: len(data) // 2]


def flipped(name):
    def flip(data, entries):
        middle = entries[name].header_offset + entries[name].file_size // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]

    return flip


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "not a zip file"),
        (flipped("weights.npz"), "Bad CRC-32"),
        (flipped("programs/64x96.exported"), "Bad CRC-32"),
        (flipped("manifest.json"), "Bad CRC-32"),
    ],
)
def test_damaged_file_is_said_in_one_line(artifact, images, damage, said, tmp_path, monkeypatch):
    with zipfile.ZipFile(artifact[0]) as archive:
        entries = archive.NameToInfo
    path = tmp_path / "damaged.fnet.zip"
    path.write_bytes(damage(artifact[0].read_bytes(), entries))
    assert said in message_of(monkeypatch, path, images[0])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"other.txt": "x"}, "manifest.json"),
        ({"manifest.json": '{"format": "fnet-jax/exported", "version": 2}'}, "another format"),
        ({"manifest.json": "[]"}, "another format"),
        ({"manifest.json": "[" * 100_000}, "recursion"),
        ({"manifest.json": RIGHT_FORMAT, "weights.npz": ""}, "not a zip file"),
    ],
)
def test_another_zip_is_said_in_one_line(content, said, images, tmp_path, monkeypatch):
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    assert said in message_of(monkeypatch, path, images[0])


def test_compressed_files_are_refused(images, tmp_path, monkeypatch):
    """They could be of any size."""
    path = tmp_path / "packed.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", RIGHT_FORMAT)
    assert f"{path} is compressed" in message_of(monkeypatch, path, images[0])
    weights = io.BytesIO()
    np.savez_compressed(weights, layer=np.zeros(3))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", RIGHT_FORMAT)
        archive.writestr("weights.npz", weights.getvalue())
    assert "weights.npz is compressed" in message_of(monkeypatch, path, images[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"programs": None},
        {"programs": [{"height": "x", "width": 1}]},
        {"programs": [{"height": 10**4, "width": 10**4, "file": "../manifest.json"}]},
        {"test_scale": "600"},
        {"max_size": None},
    ],
)
def test_manifest_of_other_types(artifact, images, changes, tmp_path, monkeypatch):
    path = tmp_path / "odd.zip"
    with zipfile.ZipFile(artifact[0]) as source, zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            if name == "manifest.json":
                content = json.dumps(json.loads(content) | changes)
            archive.writestr(name, content)
    message_of(monkeypatch, path, images[0])
