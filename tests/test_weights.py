"""Published checkpoints in and out, key for key, and what is said of files that do not fit."""

import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from fnet_jax import weights
from fnet_jax.errors import UserError
from tests.conftest import golden_dir

MANIFESTS = sorted(golden_dir().glob("manifest_*.json"))


def template_for(shapes: dict) -> dict:
    """The parameter tree of the model whose checkpoint has these keys.

    Which layers exist follows from the keys; how ours are shaped is stated here a second time.
    """
    tree = {}

    def dense(path, size_in, size_out):
        tree[f"{path}/kernel"] = (size_in, size_out)
        tree[f"{path}/bias"] = (size_out,)

    def conv(path, size_in, size_out):
        tree[f"{path}/kernel"] = (3, 3, size_in, size_out)
        tree[f"{path}/bias"] = (size_out,)

    def relation(path, dim, original):
        dense(f"{path}/key", dim, dim // 2)
        dense(f"{path}/query", dim, dim // 2)
        dense(f"{path}/value", dim, dim)
        if f"{original}.transform_geometry.transform_geometry.2.weight" in shapes:
            dense(f"{path}/geometry/fc1", 4, dim // 2)
            dense(f"{path}/geometry/fc2", dim // 2, 1)
        else:
            dense(f"{path}/geometry/fc1", dim // 2, 1)

    names = [f"{block}_{i}" for block in range(1, 6) for i in range(1, 3 if block < 3 else 4)]
    indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    channels = 3
    for name, index in zip(names, indices, strict=True):
        width = shapes[f"rpn.features.{index}.weight"][0]
        conv(f"backbone/conv{name}", channels, width)
        channels = width
    hidden = shapes["rpn.conv1.conv.weight"][0]
    anchors = shapes["rpn.score_conv.conv.weight"][0] // 2
    conv("rpn/conv", channels, hidden)
    dense("rpn/score", hidden, 2 * anchors)
    dense("rpn/box_deltas", hidden, 4 * anchors)
    dim, attention = shapes["fc_obj.3.weight"][0], shapes["nms.rank_embeddings.weight"][1]
    cells = shapes["fc_obj.0.weight"][1] // channels
    dense("object_fc/fc1", cells * channels, dim)
    dense("object_fc/fc2", dim, dim)
    conv("subgraph_conv/conv1", channels, dim)
    conv("subgraph_conv/conv2", dim, dim)
    step = 0
    while f"mps_list.{step}.att_region2object_obj.1.weight" in shapes:
        for receiver in ("subgraph_to_object", "object_to_subgraph"):
            dense(f"message_passing_{step}/{receiver}_query", dim, attention)
            dense(f"message_passing_{step}/{receiver}_key", dim, attention)
            dense(f"message_passing_{step}/{receiver}_out", dim, dim)
        original = f"mps_list.{step}.transform_object2object"
        if f"{original}.transform_key.weight" in shapes:
            relation(f"message_passing_{step}/relation", dim, original)
        step += 1
    for source in ("subject", "object", "subgraph"):
        dense(f"predicate_inference/{source}", dim, attention)
    width = attention
    if "phrase_inference.predicate_feat_pre.1.weight" in shapes:
        dense("predicate_inference/bottleneck", attention, attention // 2)
        width = attention // 2
    dense("predicate_inference/fc", cells * width, shapes["score_pred.weight"][1])
    classes = shapes["score_obj.weight"][0]
    dense("object_score", dim, classes)
    dense("box_deltas", dim, 4 * classes)
    dense("predicate_score", *shapes["score_pred.weight"][::-1])
    dense("duplicate_removal/visual", dim, attention)
    dense("duplicate_removal/rescore", attention, 1)
    tree["duplicate_removal/rank_embedding/embedding"] = shapes["nms.rank_embeddings.weight"]
    relation("duplicate_removal/relation", attention, "nms.relation_transform")
    leaves = {
        tuple(path.split("/")): jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
        for path, shape in tree.items()
    }
    return traverse_util.unflatten_dict(leaves)


def random_params(template: dict, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, leaf.dtype), template)


SMALL_SHAPES = {
    **{
        f"rpn.features.{index}.weight": (width, 3, 3, 3)
        for index, width in zip(
            (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), range(2, 15), strict=True
        )
    },
    "rpn.conv1.conv.weight": (6, 14, 3, 3),
    "rpn.score_conv.conv.weight": (10, 6, 1, 1),
    "fc_obj.0.weight": (8, 14 * 9),
    "fc_obj.3.weight": (8, 8),
    "nms.rank_embeddings.weight": (5, 4),
    "mps_list.0.att_region2object_obj.1.weight": (4, 8),
    "mps_list.1.att_region2object_obj.1.weight": (4, 8),
    "mps_list.1.transform_object2object.transform_key.weight": (4, 8),
    "phrase_inference.predicate_feat_pre.1.weight": (2, 4, 1, 1),
    "score_pred.weight": (3, 7),
    "score_obj.weight": (11, 8),
}


@pytest.fixture(scope="module")
def small():
    """(template, params): two message passing steps, no two dimensions alike."""
    template = template_for(SMALL_SHAPES)
    return template, random_params(template)


@pytest.fixture
def small_file(small, tmp_path):
    path = tmp_path / "small.h5"
    weights.export_checkpoint(path, small[1])
    return path


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_round_trip(small, small_file):
    template, params = small
    assert_equal(weights.load_checkpoint(small_file, template), params)
    assert_equal(weights.load_checkpoint(small_file, params), params)  # arrays as the template
    assert list(small_file.parent.iterdir()) == [small_file]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_full_size_key_for_key(manifest, tmp_path):
    shapes = {key: tuple(shape) for key, shape in json.loads(manifest.read_text()).items()}
    rng = np.random.default_rng(0)
    path = tmp_path / "full.h5"
    with h5py.File(path, "w") as file:
        for key, shape in shapes.items():
            file[key] = rng.standard_normal(shape, np.float32)
    params = weights.load_checkpoint(path, template_for(shapes))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(map(np.prod, shapes.values()))
    copy = tmp_path / "copy.h5"
    weights.export_checkpoint(copy, params)
    with h5py.File(path) as file, h5py.File(copy) as exported:
        assert {key: exported[key].shape for key in exported} == shapes
        for key in shapes:
            np.testing.assert_array_equal(exported[key][()], file[key][()], err_msg=key)


def test_there_are_manifests():
    assert MANIFESTS


def test_each_layout_computes_the_same(small, small_file):
    """Layers applied as PyTorch would apply the file's arrays, and as we apply ours."""
    params = weights.load_checkpoint(small_file, small[0])
    rng = np.random.default_rng(1)
    with h5py.File(small_file) as file:
        original = {key: file[key][()] for key in file}

    maps = rng.standard_normal((5, 14, 3, 3)).astype(np.float32)  # (n, C, P, P)
    expected = maps.reshape(5, -1) @ original["fc_obj.0.weight"].T
    ours = maps.transpose(0, 2, 3, 1).reshape(5, -1) @ params["object_fc"]["fc1"]["kernel"]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)

    reduced = rng.standard_normal((5, 2, 3, 3)).astype(np.float32)  # behind the bottleneck
    expected = reduced.reshape(5, -1) @ original["phrase_inference.predicate_feat_fc.0.weight"].T
    kernel = params["predicate_inference"]["fc"]["kernel"]
    ours = reduced.transpose(0, 2, 3, 1).reshape(5, -1) @ kernel
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)

    weight = original["mps_list.1.att_region2object_reg.1.weight"]  # (out, in, 1, 1)
    cells = rng.standard_normal((5, 8)).astype(np.float32)
    kernel = params["message_passing_1"]["subgraph_to_object_key"]["kernel"]
    np.testing.assert_allclose(
        cells @ kernel, np.einsum("ni,oi->no", cells, weight[..., 0, 0]), rtol=1e-4, atol=1e-5
    )

    weight = original["fc_region.0.weight"]  # (out, in, 3, 3)
    kernel = params["subgraph_conv"]["conv1"]["kernel"]
    for o, i, y, x in ((0, 1, 0, 2), (7, 13, 2, 1), (3, 5, 1, 0)):
        assert kernel[y, x, i, o] == weight[o, i, y, x]
    np.testing.assert_array_equal(
        params["duplicate_removal"]["rank_embedding"]["embedding"],
        original["nms.rank_embeddings.weight"],
    )


def test_every_problem_is_listed(small, small_file):
    with h5py.File(small_file, "a") as file:
        del file["score_obj.weight"], file["mps_list.1.att_object2region_obj.1.bias"]
        file["nms.extra"] = np.zeros(3, np.float32)
        file["folder/inner"] = np.zeros(2, np.float32)
        del file["rpn.conv1.conv.weight"]
        file["rpn.conv1.conv.weight"] = np.zeros((6, 14, 1, 1), np.float32)
        del file["score_pred.bias"]
        file["score_pred.bias"] = np.zeros(3, np.int64)
    with pytest.raises(UserError) as caught:
        weights.load_checkpoint(small_file, small[0])
    message = str(caught.value)
    assert "\n" not in message and str(small_file) in message
    for part in (
        "missing score_obj.weight (11, 8)",
        "missing mps_list.1.att_object2region_obj.1.bias (4)",
        "unknown nms.extra (3)",
        "unknown folder/inner (2)",
        "rpn.conv1.conv.weight is (6, 14, 1, 1), expected (6, 14, 3, 3)",
        "score_pred.bias holds int64",
    ):
        assert part in message
    assert message.count(";") == 5  # six problems, nothing else


def test_another_number_of_steps_is_named(small, small_file):
    template = {key: value for key, value in small[0].items() if key != "message_passing_1"}
    with pytest.raises(UserError, match=r"unknown mps_list\.1\.att_object2region_obj\.1\.bias"):
        weights.load_checkpoint(small_file, template)


@pytest.mark.parametrize("load", [weights.load_checkpoint, weights.load_rpn])
def test_missing_or_foreign_files(load, small, tmp_path):
    with pytest.raises(UserError, match="no file"):
        load(tmp_path / "absent.h5", small[0])
    text = tmp_path / "text.h5"
    text.write_text("not HDF5")
    with pytest.raises(UserError, match=r"text\.h5 cannot be read as HDF5"):
        load(text, small[0])


def rpn_file(path, params, prefix):
    rpn_params = {"backbone": params["backbone"], "rpn": params["rpn"]}
    weights.export_checkpoint(path, rpn_params)
    with h5py.File(path, "a") as file:
        for key in list(file):
            array = file[key][()]
            del file[key]
            file[key.replace("rpn.", prefix, 1)] = array
    return rpn_params


@pytest.mark.parametrize("prefix", ["", "rpn."])
def test_rpn_alone(small, tmp_path, prefix):
    template, params = small
    path = tmp_path / "rpn.h5"
    expected = rpn_file(path, params, prefix)
    with h5py.File(path) as file:
        assert f"{prefix}features.0.weight" in file and f"{prefix}score_conv.conv.bias" in file
    assert_equal(weights.load_rpn(path, template), expected)


def test_rpn_of_a_whole_checkpoint(small, small_file):
    template, params = small
    loaded = weights.load_rpn(small_file, template)
    assert_equal(loaded, {"backbone": params["backbone"], "rpn": params["rpn"]})


def test_rpn_problems_are_listed_as_in_the_file(small, tmp_path):
    path = tmp_path / "rpn.h5"
    rpn_file(path, small[1], "")
    with h5py.File(path, "a") as file:
        del file["features.5.bias"]
        file["features.6.bias"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r"missing features\.5\.bias \(4\); unknown features\.6"):
        weights.load_rpn(path, small[0])


def test_unknown_parameters_are_our_own_mistake(small, tmp_path):
    with pytest.raises(KeyError, match="gates"):
        weights.layout_entries({**small[0], "gates": {"kernel": np.zeros((2, 2))}})
