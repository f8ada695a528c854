"""Files that come from strangers: damaged in any place, or made to do harm.

Whatever is in them, reading gives what was written or one line with the file's name: never another
exception, nothing out of another file, and no more memory than what should be in them takes.
"""

import contextlib
import functools
import io
import json
import pathlib
import shutil
import struct
import types
import zipfile
import zlib

import h5py
import hypothesis
import jax
import numpy as np
import pytest
import safetensors.numpy
import tensorstore
from hypothesis import strategies as st

from fnet_jax import bad_batch, checkpoint, imagenet, weights
from fnet_jax.datasets.vg150.tables import Tables
from fnet_jax.errors import UserError
from fnet_jax.inference.predictor import SceneGraphPredictor
from tests.inference.checkpoints import save_random
from tests.json_values import places
from tests.test_checkpoint import assert_equal, make
from tests.test_imagenet import KERAS_LAYOUTS, torchvision_state, write_keras
from tests.test_weights import SMALL_SHAPES, random_params, template_for

settings = hypothesis.settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    # A folder is as good for one example as for many.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@contextlib.contextmanager
def complains(path, about=""):
    """Expects a UserError of one short line that names the file."""
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert str(path) in message and about in message
    assert message.isprintable() and len(message) < 4000


def same(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def damages(length, most=8):
    """Hypothesis: bytes to change in a file, mostly where its structure is; or where to cut it."""
    place = st.one_of(st.integers(0, min(length, 6000) - 1), st.integers(0, length - 1))
    value = st.one_of(st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 255))
    changes = st.lists(st.tuples(place, value), min_size=1, max_size=most)
    return st.one_of(changes, changes, changes, place)


def damaged(content, damage):
    if isinstance(damage, int):
        return content[:damage]
    content = bytearray(content)
    for place, value in damage:
        content[place] = value
    return bytes(content)


def check_damages(path, read):
    """The file, harmed in many ways, can be read or is refused."""
    content = path.read_bytes()
    outcomes = {"read": 0, "refused": 0}

    @settings
    @hypothesis.given(damages(len(content)))
    def run(damage):
        path.write_bytes(damaged(content, damage))
        try:
            read()
            outcomes["read"] += 1
        except UserError as error:
            assert str(path) in str(error) and str(error).isprintable()
            outcomes["refused"] += 1

    run()
    assert min(outcomes.values()) > 0


# HDF5 ---------------------------------------------------------------------------------------------

TEMPLATE = template_for(SMALL_SHAPES)
PARAMS = random_params(TEMPLATE)
VG150_ROWS = {
    "split": [0, 2],
    "img_to_first_box": [0, 2],
    "img_to_last_box": [1, 3],
    "img_to_first_rel": [0, 1],
    "img_to_last_rel": [0, 1],
    "labels": [[1], [2], [1], [3]],
    "boxes_1024": [[9, 9, 4, 4]] * 4,
    "relationships": [[0, 1], [3, 2]],
    "predicates": [[1], [2]],
}


def write_tables(path):
    with h5py.File(path, "w") as file:
        for name, rows in VG150_ROWS.items():
            file[name] = np.array(rows, np.int32)


# Of each reader: how its file is written, one of the file's arrays, and how it is read.
READERS = {
    "model": (
        lambda path: weights.export_checkpoint(path, PARAMS),
        "rpn.features.28.weight",
        lambda path: weights.load_checkpoint(path, TEMPLATE),
    ),
    "rpn": (
        lambda path: weights.export_checkpoint(path, PARAMS),
        "rpn.features.28.weight",
        lambda path: weights.load_rpn(path, TEMPLATE),
    ),
    "keras": (
        lambda path: write_keras(path, PARAMS["backbone"], KERAS_LAYOUTS["keras2"]),
        "block5_conv3/block5_conv3/kernel:0",
        lambda path: imagenet.load_vgg16(path, "rgb", TEMPLATE["backbone"]),
    ),
    "tables": (write_tables, "labels", lambda path: vars(Tables(path, 2)) | {"_path": None}),
}


def beside(file, name="other.h5"):
    """A file in the same folder; other.h5 is a whole one of the same kind."""
    return str(pathlib.Path(file.filename).with_name(name))


def replaced(file, key, **facts):
    """Another array in the place of one; what is not given is as it was."""
    facts = {"shape": file[key].shape, "dtype": file[key].dtype} | facts
    del file[key]
    return file.create_dataset(key, **facts)


def by_link(file, key, link):
    del file[key]
    file[key] = link


def by_link_to_itself(file, key):
    file["renamed"] = file[key]
    by_link(file, key, h5py.SoftLink("/renamed"))


def outside(file, key):
    array = file[key][()]
    array.tofile(beside(file, "outside.bin"))
    replaced(file, key, external=[(beside(file, "outside.bin"), 0, array.nbytes)])


def virtual(file, key):
    layout = h5py.VirtualLayout(file[key].shape, file[key].dtype)
    layout[...] = h5py.VirtualSource(beside(file), key, file[key].shape, file[key].dtype)
    del file[key]
    file.create_virtual_dataset(key, layout)


def bomb(file, key):
    """A chunk that inflates to a thousand times what it should hold."""
    array = replaced(file, key, chunks=file[key].shape, compression="gzip")
    array.id.write_direct_chunk((0,) * array.ndim, zlib.compress(bytes(array.nbytes * 1000)))


def of_type(dtype):
    return lambda file, key: replaced(file, key, dtype=dtype)


def no_array(file, key):
    file["copy/in/here"] = file[key]
    by_link(file, key, np.dtype("f4"))


HOSTILE = {
    "external link": (
        lambda file, key: by_link(file, key, h5py.ExternalLink(beside(file), key)),
        "is a link",
    ),
    "soft link": (by_link_to_itself, "is a link"),
    "link to itself": (lambda file, key: by_link(file, key, h5py.SoftLink(f"/{key}")), "is a link"),
    "raw storage": (outside, "lies in other files"),
    "virtual": (virtual, "lies in other files"),
    "circle": (lambda file, key: by_link(file, key, file["/"]), "groups over 8 deep"),
    "type": (no_array, "is neither a group nor an array"),
    "huge": (
        lambda file, key: replaced(file, key, shape=(10**6, 10**6), chunks=(1000, 1000)),
        "numbers",
    ),
    "huge chunk": (
        lambda file, key: replaced(
            file, key, maxshape=(None,) * file[key].ndim, chunks=(2**29, *file[key].shape[1:])
        ),
        "numbers",
    ),
    "bomb": (bomb, "is packed wrongly"),
    "lzf": (lambda file, key: replaced(file, key, compression="lzf"), "another way than with gzip"),
    "lists": (of_type(h5py.vlen_dtype(np.float32)), "is no array of numbers"),
    "texts": (of_type(h5py.string_dtype()), "is no array of numbers"),
    "references": (of_type(h5py.ref_dtype), "is no array of numbers"),
    "records": (of_type([("a", "f4"), ("b", "i4")]), "is no array of numbers"),
    "rows": (of_type(np.dtype(("f4", (3,)))), "is no array of numbers"),
    "complex": (of_type(np.complex64), "is no array of numbers"),
    "nothing": (
        lambda file, key: replaced(file, key, shape=None, data=h5py.Empty("f4")),
        "is no array of numbers",
    ),
}


@pytest.fixture(params=READERS)
def stored(request, tmp_path):
    """(path, key of an array, how to read): a whole file, and another one like it beside."""
    write, key, read = READERS[request.param]
    path = tmp_path / "stranger's.h5"
    write(path)
    write(tmp_path / "other.h5")
    return path, key, read


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_array(stored, hostile):
    path, key, read = stored
    harm, about = HOSTILE[hostile]
    read(path)
    with h5py.File(path, "a") as file:
        harm(file, key)
    with complains(path, about):
        read(path)


def test_packed_arrays_are_read(stored):
    path, _, read = stored
    expected = read(path)
    keys = []
    with h5py.File(path, "a") as file:
        file.visititems(lambda name, item: keys.append(name) if hasattr(item, "shape") else None)
        for key in keys:
            array = file[key][()]
            # Of several chunks, some beyond the array's end.
            chunks = tuple(-(-size // 2) for size in array.shape)
            replaced(
                file, key, data=array, chunks=chunks, compression=9, shuffle=True, fletcher32=True
            )
    assert same(read(path), expected)


@pytest.mark.parametrize(
    ("name", "count", "about"),
    [
        ("model", 100, "; and 88 more"),
        ("keras", 100, "it holds 0 (2,)"),
        ("model", 10_001, "over 10000 names"),
        ("keras", 10_001, "over 10000 names"),
    ],
)
def test_many_names(tmp_path, name, count, about):
    write, _, read = READERS[name]
    path = tmp_path / "many.h5"
    write(path)
    with h5py.File(path, "a") as file:
        array = file.create_dataset("0", data=np.zeros(2, np.float32))
        for number in range(1, count):
            file[f"{number}"] = array
    with complains(path, about):
        read(path)


@pytest.mark.parametrize("key", ["line\nbreak", "\x1b[31m", "é" * 30_000, b"\xff\xfe", "a;b"])
@pytest.mark.parametrize("name", ["model", "keras"])
def test_odd_names(tmp_path, name, key):
    write, _, read = READERS[name]
    path = tmp_path / "odd.h5"
    write(path)
    with h5py.File(path, "a") as file:
        inner = file.create_group("group")
        inner[key] = np.zeros(2, np.float32)
    with complains(path):
        read(path)


def test_what_is_not_needed_is_not_looked_at(tmp_path):
    """VG150's file may hold more tables than are read."""
    write, _, read = READERS["tables"]
    path = tmp_path / "more.h5"
    write(path)
    expected = read(path)
    with h5py.File(path, "a") as file:
        file["boxes_512"] = h5py.ExternalLink("gone.h5", "boxes")
    assert same(read(path), expected)


def test_damaged_hdf5(stored):
    path, _, read = stored
    check_damages(path, lambda: read(path))


# safetensors --------------------------------------------------------------------------------------


def read_safetensors(path):
    return imagenet.load_vgg16(path, "rgb", TEMPLATE["backbone"])


def safetensors_file(header, content=bytes(64)):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + content


def array(dtype="F32", shape=(16,), start=0, stop=64):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + bytes(100),
        safetensors_file([]),
        safetensors_file(b"[" * 100_000),
        *(
            safetensors_file({"features.0.bias": entry})
            for entry in (
                None,
                array(shape=[2**62, 2**62]),
                array(shape=[-1]),
                array(shape=[1] * 100 + [16]),
                array(shape=[0, 2**62], stop=0),
                array(start=2**62, stop=2**62 + 64),
                array(stop=128, shape=[32]),
                *(array(kind, [64 // size]) for kind, size in (("F8_E4M3", 1), ("BF16", 2))),
                *(array(kind, [64 // size]) for kind, size in (("C64", 8), ("Q8", 1), ("", 1))),
            )
        ),
        safetensors_file({"a": array(), "b": array()}),
        safetensors_file({"a\nb\ud800": array()}),
    ],
)
def test_hostile_safetensors(tmp_path, content):
    path = tmp_path / "stranger's.safetensors"
    path.write_bytes(content)
    with complains(path):
        read_safetensors(path)


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "damaged.safetensors"
    safetensors.numpy.save_file(torchvision_state(PARAMS["backbone"]), path)
    check_damages(path, lambda: read_safetensors(path))


# PyTorch's pickles; that they never run is in tests/test_imagenet.py ------------------------------


@pytest.fixture
def torch_file(tmp_path):
    """(torch, state_dict of a whole file, its path, how to read it)."""
    torch = pytest.importorskip("torch")
    state = torchvision_state(PARAMS["backbone"])
    path = tmp_path / "stranger's.pth"
    read = functools.partial(imagenet.load_vgg16, path, "rgb", TEMPLATE["backbone"])
    return torch, {key: torch.from_numpy(array) for key, array in state.items()}, path, read


def test_hostile_torch_file(torch_file):
    torch, state, path, read = torch_file
    for key, value in (
        ("huge view", torch.zeros(1, dtype=torch.float16).expand(10**6, 10**6)),
        ("sparse", torch.sparse_coo_tensor([[0], [0]], [1.0], (10**6, 10**6))),
        ("no numbers", torch.zeros((10**6, 10**6), device="meta")),
        ("no tensor", [1]),
        (3, torch.zeros(2)),
    ):
        torch.save(state | {key: value}, path)
        with complains(path, "is not a state_dict"):
            read()


def test_damaged_torch_file(torch_file):
    torch, state, path, read = torch_file
    torch.save(state, path)
    check_damages(path, read)


# Checkpoints --------------------------------------------------------------------------------------


@pytest.fixture
def step_dir(tmp_path):
    writer = checkpoint.Checkpoints(tmp_path)
    writer.save(checkpoint.LATEST, make(20))
    writer.close()
    return tmp_path / "checkpoints" / "latest" / "20"


def test_damaged_checkpoint(step_dir):
    """One file of all is damaged, cut, emptied or removed: all is as written, or it is said."""
    expected = make(20)
    files = sorted(file for file in step_dir.rglob("*") if file.is_file())
    contents = {file: file.read_bytes() for file in files}
    outcomes = {"same": 0, "refused": 0}

    @hypothesis.settings(settings, max_examples=200)
    @hypothesis.given(st.data())
    def run(data):
        file = data.draw(st.sampled_from(files))
        content = contents[file]
        # Two changes at the most: nearly all single bits of these files matter.
        damage = data.draw(st.one_of(damages(len(content), 2), st.just(0), st.none()))
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damaged(content, damage))
        try:
            assert_equal(checkpoint.restore(step_dir), expected)
            outcomes["same"] += 1
        except UserError as error:
            assert str(step_dir) in str(error) and str(error).isprintable()
            outcomes["refused"] += 1
        finally:
            file.write_bytes(content)

    run()
    assert min(outcomes.values()) > 20


def rewrite_meta(step_dir, change):
    """Changes a checkpoint's plain fields, and the digest with them, as its maker could."""
    path = step_dir / "meta" / "metadata"
    meta = json.loads(path.read_text())
    digests = meta.pop("digest")
    change(meta)
    digests["meta"] = checkpoint._digest_of_json(meta)
    path.write_text(json.dumps(meta | {"digest": digests}))


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "3", '"x"', "NaN", "{}", '{"digest": 1}', '{"digest": {}}', "[" * 200_000],
)
def test_meta_that_is_none(step_dir, text):
    (step_dir / "meta" / "metadata").write_text(text)
    with complains(step_dir):
        checkpoint.restore(step_dir)


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ('"position": 20', '"position": 21'),
        ('"seed": 1}', '"seed": 2}'),
        ('"dog"', '"dot"'),
        ('"params": "', '"params": "0'),
        ('"params": "', '"paramz": "'),
    ],
)
def test_meta_that_is_right_but_another(step_dir, text, changed):
    path = step_dir / "meta" / "metadata"
    content = path.read_text()
    assert content.count(text) == 1
    path.write_text(content.replace(text, changed))
    with complains(step_dir, "are not as they were written"):
        checkpoint.restore(step_dir)


@pytest.mark.parametrize("value", [None, "x\n", [1], {"a": 1}, 2.5])
@pytest.mark.parametrize("field", checkpoint._META)
def test_meta_of_another_type(step_dir, field, value):
    kinds = checkpoint._META[field]
    rewrite_meta(step_dir, lambda meta: meta.update({field: value}))
    if isinstance(value, kinds):
        assert getattr(checkpoint.restore(step_dir), field) == value
    else:
        with complains(step_dir, f"({field} is "):
            checkpoint.restore(step_dir)


def rewrite_array(step_dir, **facts):
    """Changes what a checkpoint says of one of its arrays."""
    place = {"driver": "ocdbt", "base": f"file://{step_dir}/params/"}
    store = tensorstore.KvStore.open(place).result()
    key = b"rpn.conv.kernel/.zarray"
    declared = json.loads(store.read(key).result().value) | facts
    store.write(key, json.dumps(declared).encode()).result()


# Without the checks, tensorstore ends the process at the first two.
@pytest.mark.parametrize(
    ("facts", "about"),
    [
        ({"shape": [10**6, 10**6]}, "its arrays have 4000000000012 bytes"),
        ({"shape": [2**62, 2**62], "chunks": [1, 1]}, "its arrays have"),
        ({"chunks": [2**14, 2**14]}, "is in chunks of (16384, 16384)"),
        ({"shape": [-1, 3]}, "cannot be read"),
        ({"dtype": "|S4"}, "cannot be read"),
        ({"compressor": {"id": "evil"}}, "cannot be read"),
    ],
)
def test_declared_arrays(step_dir, facts, about):
    rewrite_array(step_dir, **facts)
    with complains(step_dir, about):
        checkpoint.restore(step_dir)


@pytest.mark.parametrize(
    ("facts", "about"),
    [
        ({"shape": [30_000, 30_000]}, "kernel is (30000, 30000) instead of (2, 3)"),
        ({"dtype": "<c8"}, "kernel holds complex64 instead of float32"),
    ],
)
def test_arrays_are_compared_before_they_are_read(step_dir, facts, about):
    # What they declare is not there, which reading them would notice.
    rewrite_array(step_dir, **facts)
    with complains(step_dir, about):
        checkpoint.restore(step_dir, make(1).params)


def outside(tree):
    """Arrays of a folder beside instead of the database's."""
    entry = tree["tree_metadata"].popitem()[1]
    entry["key_metadata"] = [{"key": "../../../../../other", "key_type": 2}]
    tree.update(use_ocdbt=False, tree_metadata={"('other',)": entry})


def kernel_is(**facts):
    return lambda tree: tree["tree_metadata"]["('rpn', 'conv', 'kernel')"].update(facts)


@pytest.mark.parametrize(
    "change",
    [
        outside,
        lambda tree: tree.update(use_zarr3=True),
        lambda tree: tree.update(tree_metadata=[]),
        lambda tree: tree.update(tree_metadata={}),
        kernel_is(key_metadata=[{"key": "9999999", "key_type": 1}]),
        *(
            kernel_is(value_metadata={"value_type": kind, "skip_deserialize": skip})
            for kind, skip in (("string", False), ("os.system", False), ("np.ndarray", True))
        ),
    ],
)
def test_another_tree_of_arrays(tmp_path, step_dir, change):
    array = np.ones((2, 3), np.float32)
    place = {"driver": "zarr", "kvstore": f"file://{tmp_path}/other/"}
    tensorstore.open(place, create=True, dtype="float32", shape=array.shape).result()[:] = array
    path = step_dir / "params" / "_METADATA"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with complains(step_dir):
        checkpoint.restore(step_dir)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with a network that could be used, and its step."""
    workdir = save_random(tmp_path_factory.mktemp("trained"))
    return workdir, workdir / "checkpoints" / "best" / "7"


def config_with(section, **fields):
    return lambda facts: facts["config"][section].update(fields)


DESCRIBED = {
    "no config": lambda facts: facts.update(config=None),
    "unknown section": lambda facts: facts["config"].update(evil={"a": 1}),
    "unknown field": config_with("model", evil=1),
    "type": config_with("model", dim_object="64\n"),
    "list of lists": config_with("model", vgg_widths=[[4]] * 13),
    "null": config_with("model", vgg_widths=None),
    "negative": config_with("model", dim_rpn=-8),
    "million steps": config_with("model", message_passing_steps=10**6),
    "huge": config_with("model", dim_object=2**40, dim_subgraph=2**40),
    "choice": config_with("model", geometry="v3"),
    "buckets": config_with("image", buckets=[[64, "x"]]),
    "colours": config_with("image", color_order="gbr"),
    "mean": config_with("image", mean=[1, 2]),
    "std": config_with("image", std=[1, 2, float("nan")]),
    "names": lambda facts: facts.update(object_names=[1, 2, 3, 4]),
    "text as names": lambda facts: facts.update(predicate_names="abc"),
    "anchors": lambda facts: facts.update(anchors=[[1, 2, 3], [4, 5, 6]]),
    "NaN": lambda facts: facts.update(anchors=[[float("nan")] * 4] * 2),
}


@pytest.mark.parametrize("change", DESCRIBED)
def test_networks_that_cannot_be(tmp_path, trained, change):
    workdir = shutil.copytree(trained[0], tmp_path / "workdir")
    step_dir = workdir / "checkpoints" / "best" / "7"
    rewrite_meta(step_dir, lambda meta: DESCRIBED[change](meta["metadata"]))
    with complains(workdir):
        SceneGraphPredictor.from_checkpoint(workdir)


JUNK = [None, True, 0, -1, 2.5, 10**6, 10**30, float("nan"), "", "\ud800\n", [], {}, [[0]], {"": 0}]


def test_one_wrong_value_in_the_metadata(tmp_path, trained):
    workdir = shutil.copytree(trained[0], tmp_path / "workdir")
    step_dir = workdir / "checkpoints" / "best" / "7"
    original = (step_dir / "meta" / "metadata").read_bytes()
    SceneGraphPredictor.from_checkpoint(workdir)
    refused = []

    @hypothesis.settings(settings, max_examples=20)
    @hypothesis.given(st.data())
    def run(data):
        def change(meta):
            container, key = data.draw(st.sampled_from(places(meta["metadata"])))
            container[key] = data.draw(st.sampled_from(JUNK))

        (step_dir / "meta" / "metadata").write_bytes(original)
        rewrite_meta(step_dir, change)
        try:
            SceneGraphPredictor.from_checkpoint(workdir)
        except UserError as error:
            assert str(workdir) in str(error) and str(error).isprintable()
            refused.append(str(error))

    run()
    assert len(refused) > 5


# The batch of a bad step --------------------------------------------------------------------------


@pytest.fixture
def batch_file(tmp_path):
    batch = {"image_index": np.arange(2), "image": np.ones((2, 3, 4), np.uint8)}
    pending = types.SimpleNamespace(step=3, epoch=1, batches=[batch, batch])
    return bad_batch.write(tmp_path, pending, "why")


def member(array=None, shape=None):
    """A .npy file; its header may tell of another shape than the array's."""
    file = io.BytesIO()
    array = np.zeros(2) if array is None else array
    np.lib.format.write_array_header_1_0(
        file,
        {"descr": array.dtype.str, "fortran_order": False, "shape": shape or array.shape},
    )
    return file.getvalue() + array.tobytes()


FACTS = {"step": 1, "epoch": 0, "cause": "why", "process_index": 0, "device_count": 1}


@pytest.mark.parametrize(
    "members",
    [
        {"0/image_index.npy": member(shape=(10**12,))},
        {"0/image_index.npy": member(shape=(2**70,))},
        {"0/image_index.npy": b"\x93NUMPY\x03\0" + bytes(100)},
        {"0/image_index.npy": b""},
        {"0/image_index.npy": member(np.array([None, None]))},
        {"0/image_index.npy": member(np.array(3))},
        {"0/image.npy": member()},
        {"0/image_index.npy": member(), "0/image.npy": member(np.zeros(1))},
        {"image_index.npy": member()},
        {"a/image_index.npy": member()},
        {"../../0/image_index.npy": member()},
        *(
            {"facts.npy": member(np.array(json.dumps(facts)))}
            for facts in (None, [], {}, FACTS | {"step": "1"}, FACTS | {"cause": None})
        ),
        {"facts.npy": member(np.array("[" * 100_000))},
    ],
)
def test_hostile_batch(batch_file, members):
    with zipfile.ZipFile(batch_file, "w") as archive:
        members = {"facts.npy": member(np.array(json.dumps(FACTS)))} | members
        for name, content in members.items():
            archive.writestr(name, content)
    with complains(batch_file):
        bad_batch.read(batch_file)


def test_batch_that_would_fill_the_memory(batch_file, monkeypatch):
    monkeypatch.setattr(bad_batch, "_MAX_BYTES", 2**20)
    zeros = np.zeros((2, 2**20), np.uint8)
    with zipfile.ZipFile(batch_file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0/zeros.npy", member(zeros))
    assert batch_file.stat().st_size < 2**14
    with complains(batch_file, "more than 1048576 bytes"):
        bad_batch.read(batch_file)


def test_damaged_batch(batch_file):
    expected = bad_batch.read(batch_file)

    def read():
        # Of all formats here this one and our checkpoints have checksums.
        assert same(bad_batch.read(batch_file), expected)

    check_damages(batch_file, read)
