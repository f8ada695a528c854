"""The network's parts: their formulas, and what must not matter to them: order and padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnet_jax.backbone import LAYERS, VGG16
from fnet_jax.layers import DROPOUT_GROUPS, GroupDropout
from fnet_jax.message_passing import MessagePassing
from fnet_jax.model import FactorizableNet
from fnet_jax.predicates import PredicateInference
from fnet_jax.relation import Geometry, RelationModule, SinusoidLinear, geometric_embedding
from tests.small_model import QUICK, WIDTH, random_model, random_params

R, K, P = 6, 4, 2  # objects, subgraphs, pool size
EXTRA_R, EXTRA_K = 3, 2  # unused slots

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def graph_inputs(seed=0):
    """Objects, subgraphs, boxes, mask and incidence, with unused slots that hold rubbish."""
    rng = np.random.default_rng(seed)
    objects, subgraphs = R + EXTRA_R, K + EXTRA_K
    corner = rng.uniform(0, 60, (objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 40, (objects, 2))], axis=1)
    incidence = rng.random((subgraphs, objects)) < 0.6
    incidence[:, 1] = False  # an object without subgraphs hears nothing
    incidence[1] = False
    incidence[K:], incidence[:, R:] = False, False
    vectors = rng.standard_normal((objects, WIDTH))
    maps = rng.standard_normal((subgraphs, P, P, WIDTH))
    vectors[R:], maps[K:] = 1e3, -1e3
    mask = np.arange(objects) < R
    return (
        vectors.astype(np.float32),
        maps.astype(np.float32),
        boxes.astype(np.float32),
        mask,
        incidence,
    )


def used(inputs):
    objects, subgraphs, boxes, mask, incidence = inputs
    return objects[:R], subgraphs[:K], boxes[:R], mask[:R], incidence[:K, :R]


def message_passing(relation=True, geometry="v2", use_bias=True, dropout=0.0):
    return MessagePassing(WIDTH, WIDTH, WIDTH // 2, relation, geometry, use_bias, dropout)


@functools.partial(
    jax.jit,
    static_argnames=("module", "train", "method"),
    compiler_options=QUICK,
)
def _apply(module, params, args, rngs, train, method):
    kwargs = {} if train is None else {"train": train}
    return module.apply({"params": params}, *args, rngs=rngs, method=method, **kwargs)


def apply(module, params, *args, rngs=None, train=None, method=None):
    return jax.tree.map(np.asarray, _apply(module, params, args, rngs, train, method))


def dense(params, x):
    return np.float64(x) @ np.float64(params["kernel"]) + np.float64(params.get("bias", 0.0))


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    exp = np.exp(x - x.max())
    return exp / exp.sum()


# ---- message passing ----


def test_message_passing_formula():
    objects, subgraphs, boxes, mask, incidence = used(graph_inputs())
    module = message_passing(relation=False)
    params = random_params(module, objects, subgraphs, boxes, mask, incidence)
    new_objects, new_subgraphs = apply(module, params, objects, subgraphs, boxes, mask, incidence)

    def transform(name, x):
        return dense(params[name], relu(x))

    scale = np.sqrt(WIDTH // 2)
    expected = np.float64(objects)
    for i in range(R):
        mine = subgraphs[incidence[:, i]].reshape(-1, WIDTH)  # all positions of all its subgraphs
        keys = transform("subgraph_to_object_key", mine)
        logits = keys @ transform("subgraph_to_object_query", objects[i]) / scale
        gathered = softmax(logits) @ mine if len(mine) else np.zeros(WIDTH)
        expected[i] += transform("subgraph_to_object_out", gathered)
    assert_close(new_objects, expected)

    expected = np.float64(subgraphs)
    for k, row, column in np.ndindex(K, P, P):
        mine, position = objects[incidence[k]], subgraphs[k, row, column]
        keys = transform("object_to_subgraph_key", mine)
        logits = keys @ transform("object_to_subgraph_query", position) / scale
        gathered = softmax(logits) @ mine if len(mine) else np.zeros(WIDTH)
        expected[k, row, column] += transform("object_to_subgraph_out", gathered)
    assert_close(new_subgraphs, expected)


def test_attention_to_large_vectors_is_finite():
    objects, subgraphs, *rest = used(graph_inputs())
    # All logits are divided by the square root of 32, which is no float.
    module = MessagePassing(2 * WIDTH, 2 * WIDTH, WIDTH, True, "v2", True, 0.0)
    inputs = *(np.float32(1e6) * np.tile(x, 2) for x in (objects, subgraphs)), *rest
    for output in apply(module, random_params(module, *inputs), *inputs):
        assert np.isfinite(output).all()


@pytest.mark.parametrize("geometry", ["v1", "v2"])
def test_message_passing_knows_neither_order_nor_padding(geometry):
    padded = graph_inputs()
    objects, subgraphs, boxes, mask, incidence = used(padded)
    module = message_passing(geometry=geometry)
    params = random_params(module, *used(padded))
    new_objects, new_subgraphs = apply(module, params, *used(padded))
    assert np.abs(new_objects - objects).max() > 0.1

    order, subgraph_order = np.array([3, 0, 5, 1, 2, 4]), np.array([2, 3, 0, 1])
    shuffled = apply(
        module,
        params,
        objects[order],
        subgraphs[subgraph_order],
        boxes[order],
        mask,
        incidence[subgraph_order][:, order],
    )
    assert_close(shuffled[0], new_objects[order])
    assert_close(shuffled[1], new_subgraphs[subgraph_order])

    with_unused = apply(module, params, *padded)
    assert_close(with_unused[0][:R], new_objects)
    assert_close(with_unused[1][:K], new_subgraphs)
    assert np.isfinite(with_unused[0]).all()


def leaf_names(params):
    return {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)}


def test_use_bias():
    inputs = used(graph_inputs())
    without = random_params(message_passing(relation=False, use_bias=False), *inputs)
    assert leaf_names(without) == {"kernel"}
    assert leaf_names(random_params(message_passing(relation=False), *inputs)) == {"kernel", "bias"}
    _, whole = random_model(use_bias=False)
    step = dict(whole["message_passing_0"])
    assert "bias" in leaf_names(step.pop("relation"))  # relation modules keep theirs
    assert leaf_names(step) == {"kernel"}
    assert leaf_names(whole["predicate_inference"]) == {"kernel"}
    others = ("object_score", "box_deltas", "predicate_score", "object_fc", "duplicate_removal")
    assert all("bias" in leaf_names(whole[name]) for name in others)


# ---- the whole graph stage ----


def whole_graph(model, params, boxes, mask, subgraph_boxes, incidence):
    features = np.random.default_rng(9).standard_normal((4, 6, 8)).astype(np.float32)

    def embed_and_refine(model):
        objects = model.embed_objects(features, (4, 6), boxes)
        return model.graph(objects, features, (4, 6), boxes, mask, subgraph_boxes, incidence)

    return apply(model, params, method=embed_and_refine)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_any_number_of_message_passing_steps(steps):
    _, _, boxes, mask, incidence = used(graph_inputs())
    subgraph_boxes = boxes[:K] + np.float32(5)
    model, params = random_model(message_passing_steps=steps)
    assert sum(name.startswith("message_passing_") for name in params) == steps
    outputs = whole_graph(model, params, boxes, mask, subgraph_boxes, incidence)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def pooled_embeddings(params):
        def embed(model):
            features = np.random.default_rng(9).standard_normal((4, 6, 8)).astype(np.float32)
            objects = model.object_fc(model.pool(features, boxes, (4, 6)))
            return objects, model.subgraph_conv(model.pool(features, subgraph_boxes, (4, 6)))

        return model.apply({"params": params}, method=embed)

    objects, subgraphs = initial, _ = pooled_embeddings(params)
    module = MessagePassing(WIDTH, WIDTH, WIDTH, True, "v2", True, 0.0)
    for step in range(steps):
        own = params[f"message_passing_{step}"]
        objects, subgraphs = apply(module, own, objects, subgraphs, boxes, mask, incidence)
    assert_close(outputs.objects, objects)
    assert_close(outputs.object_logits, dense(params["object_score"], relu(objects)))
    # Boxes are regressed before the messages.
    deltas = dense(params["box_deltas"], relu(initial)).reshape(R, -1, 4)
    assert_close(outputs.box_deltas, deltas)
    term = dense(params["predicate_inference"]["subgraph"], relu(subgraphs))
    assert_close(outputs.subgraph_term, term)


def test_graph_knows_neither_order_nor_padding():
    _, _, boxes, mask, incidence = graph_inputs()
    subgraph_boxes = boxes[: K + EXTRA_K] + np.float32(5)
    model, params = random_model(geometry="v1")
    plain = whole_graph(model, params, boxes[:R], mask[:R], subgraph_boxes[:K], incidence[:K, :R])
    order = np.array([4, 2, 0, 1, 5, 3])
    shuffled = whole_graph(
        model, params, boxes[order], mask[:R], subgraph_boxes[:K], incidence[:K][:, order]
    )
    padded = whole_graph(model, params, boxes, mask, subgraph_boxes, incidence)
    for name in ("objects", "object_logits", "box_deltas", "subject_term", "object_term"):
        expected = getattr(plain, name)
        assert np.abs(np.diff(expected, axis=0)).max() > 1e-2, f"{name} is all the same"
        assert_close(getattr(shuffled, name), expected[order], err_msg=name)
        assert_close(getattr(padded, name)[:R], expected, err_msg=name)
    assert_close(shuffled.subgraph_term, plain.subgraph_term)
    assert_close(padded.subgraph_term[:K], plain.subgraph_term)


def test_duplicate_factor_ignores_padding():
    vectors, _, boxes, mask, _ = graph_inputs()
    probabilities = np.random.default_rng(3).random(R + EXTRA_R).astype(np.float32)
    probabilities[R:] = 2.0  # must not take the first ranks
    model, params = random_model()
    method = FactorizableNet.duplicate_factor
    padded = apply(model, params, vectors, probabilities, boxes, mask, method=method)
    plain = apply(model, params, vectors[:R], probabilities[:R], boxes[:R], mask[:R], method=method)
    assert_close(padded[:R], plain)
    assert plain.min() > 0
    assert plain.max() < 1
    assert np.ptp(plain) > 1e-3


# ---- predicates ----


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("fusion", ["sum", "prod", "sum_prod"])
def test_predicates(fusion, bottleneck):
    objects, subgraphs, *_ = used(graph_inputs())
    subjects, others = np.array([0, 3, 3, 5]), np.array([1, 2, 3, 0])
    chosen = np.array([0, 3, 1, 1])
    module = PredicateInference(WIDTH, 24, fusion, bottleneck, True, 0.0)

    def phrases(module, objects, subgraphs):
        subject, object_, subgraph = module.project(objects, subgraphs)
        return module.infer(subject[subjects], object_[others], subgraph[chosen])

    params = random_params(module, objects, subgraphs, method=phrases)
    actual = apply(module, params, objects, subgraphs, method=phrases)

    subject = dense(params["subject"], relu(objects))[subjects][:, None, None]
    object_ = dense(params["object"], relu(objects))[others][:, None, None]
    x = dense(params["subgraph"], relu(subgraphs))[chosen]
    if fusion == "sum":
        x = x + subject + object_
    elif fusion == "prod":
        x = x * subject * object_
    else:
        x = x * subject + x * object_
    x = relu(x)
    if bottleneck:
        assert params["bottleneck"]["kernel"].shape == (WIDTH, WIDTH // 2)
        x = relu(dense(params["bottleneck"], x))
    else:
        assert "bottleneck" not in params
    assert_close(actual, dense(params["fc"], x.reshape(4, -1)))


# ---- dropout ----


def drop(x, rate, *, train=True, seed=0):
    module = GroupDropout(rate)
    return np.asarray(module.apply({}, x, train=train, rngs={"dropout": jax.random.key(seed)}))


@pytest.mark.parametrize("shape", [(50, 32), (50, 3, 2, 32)])
def test_dropout_drops_whole_groups(shape):
    x = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    y = drop(x, 0.25)
    kept = y != 0.0
    np.testing.assert_allclose(y[kept], x[kept] / np.float32(0.75), rtol=1e-6)
    groups = kept.reshape(shape[0], -1, DROPOUT_GROUPS, 32 // DROPOUT_GROUPS)
    whole = groups[:, :1, :, :1]
    assert (groups == whole).all(), "a group was dropped in part, or at some positions only"
    # 800 groups, kept with chance 3/4: five standard deviations are 0.08.
    assert abs(whole.mean() - 0.75) < 0.08
    assert whole.any(axis=0).all()
    assert not whole.all(axis=0).any()
    assert np.any(drop(x, 0.25, seed=1) != y)
    np.testing.assert_array_equal(drop(x, 0.25), y)


def test_dropout_is_off_at_test():
    x = np.ones((2, 32), np.float32)
    np.testing.assert_array_equal(drop(x, 0.9, train=False), x)
    np.testing.assert_array_equal(drop(x, 0.0), x)


def test_dropout_in_message_passing():
    inputs = used(graph_inputs())
    plain, dropping = message_passing(False), message_passing(False, dropout=0.5)
    params = random_params(plain, *inputs)
    expected = apply(plain, params, *inputs)
    jax.tree.map(np.testing.assert_array_equal, apply(dropping, params, *inputs), expected)
    rngs = {"dropout": jax.random.key(0)}
    new_objects, new_subgraphs = apply(dropping, params, *inputs, train=True, rngs=rngs)
    # Messages lose whole groups: about half of the channels stay as they were.
    assert 0.3 < np.mean(new_objects == inputs[0]) < 0.7
    assert 0.3 < np.mean(new_subgraphs == inputs[1]) < 0.7


# ---- relation module ----


def test_geometric_embedding():
    boxes = np.array([[0, 0, 10, 20], [4, 8, 6, 12], [0, 5, 40, 45]], np.float32)
    embedding = np.asarray(jax.jit(geometric_embedding)(boxes))
    for i, j in np.ndindex(3, 3):
        (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes[i].astype(float), boxes[j].astype(float)
        dx, dy = abs((x1 + x2) - (u1 + u2)) / 2, abs((y1 + y2) - (v1 + v2)) / 2
        ratios = dx / (x2 - x1), dy / (y2 - y1), (x2 - x1) / (u2 - u1), (y2 - y1) / (v2 - v1)
        expected = [np.log(ratio) if ratio > 0 else 0.0 for ratio in ratios]
        np.testing.assert_allclose(embedding[i, j], expected, atol=1e-6)
    np.testing.assert_array_equal(embedding[0, 1, :2], 0.0)  # the same centre: log of 0 counts 0


def test_geometric_embedding_of_points_is_finite():
    # The second covers half a pixel: its last column lies before its first.
    boxes = np.array([[3, 3, 3, 3], [3.25, 3.25, 2.75, 2.75], [0, 0, 9, 9]], np.float32)
    embedding = np.asarray(jax.jit(geometric_embedding)(boxes))
    assert np.isfinite(embedding).all()
    np.testing.assert_array_equal(embedding[:2, :2], 0.0)
    np.testing.assert_array_equal(embedding[0], embedding[1])


def test_sinusoids_one_by_one():
    position = np.random.default_rng(0).uniform(-2, 2, (5, 4)).astype(np.float32)
    dim = 32

    def one(kernel):
        params = {"kernel": kernel, "bias": np.zeros(1, np.float32)}
        return SinusoidLinear(dim, "default").apply({"params": params}, position)

    actual = jax.jit(jax.vmap(one))(np.eye(dim, dtype=np.float32)[:, :, None]).T
    expected = []
    for coordinate in range(4):
        for wave in (np.sin, np.cos):
            for k in range(dim // 8):
                angle = 100 * np.float64(position[:, coordinate]) / 1000 ** (8 * k / dim)
                expected.append(wave(angle))
    np.testing.assert_allclose(actual, np.stack(expected, axis=-1), atol=1e-4)


def relation_inputs(scale: int):
    """Whole numbers small enough that the logits, `scale` times as large, are exact in float32."""
    rng = np.random.default_rng(5)
    _, _, boxes, mask, _ = graph_inputs()
    features = rng.integers(-2, 3, (len(mask), 8)).astype(np.float32)
    module = RelationModule(16, 8, "v1")
    params = random_params(module, features, boxes, mask)
    for name in ("key", "query"):
        params[name] = {
            "kernel": rng.integers(-1, 2, (8, 16)).astype(np.float32)
            * (scale if name == "key" else 1),
            "bias": np.zeros(16, np.float32),
        }
    params["value"]["bias"] = rng.standard_normal(8).astype(np.float32)
    return module, params, features, boxes, mask


@pytest.mark.parametrize("scale", [1, 4096])
def test_relation_module(scale):
    module, params, features, boxes, mask = relation_inputs(scale)
    actual = apply(module, params, features, boxes, mask)

    x = relu(features)
    logits = dense(params["key"], x) @ dense(params["query"], x).T / 4.0  # sqrt(16)
    weight = apply(Geometry("v1", 16, "default"), params["geometry"], boxes).astype(np.float64)
    sends = mask[None] & ~np.eye(len(mask), dtype=bool)
    heard = sends & (weight > 0)
    assert (heard.any(axis=1) & (sends & (weight == 0)).any(axis=1)).any()
    if scale > 1:
        assert np.abs(logits[heard]).max() > 1e3, "a bare exp would not overflow"
    expected = np.zeros((len(mask), 8))
    values = dense(params["value"], x)
    for i in range(len(mask)):
        top = max(0.0, np.max(logits[i, heard[i]], initial=0.0))
        parts = np.where(heard[i], np.exp(np.where(heard[i], logits[i] - top, 0)) * weight[i], 0)
        expected[i] = parts / (parts.sum() + 1e-10 * np.exp(-top)) @ values
    assert_close(actual[:R], expected[:R])

    @functools.partial(jax.jit, compiler_options=QUICK)
    @jax.grad
    def gradient(params):
        return jnp.sum(module.apply({"params": params}, features, boxes, mask)[:R] ** 2)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(params)))


def test_relation_module_alone_hears_nothing():
    module, params, features, boxes, mask = relation_inputs(1)
    mask = np.arange(len(mask)) < 1
    np.testing.assert_array_equal(apply(module, params, features, boxes, mask)[0], 0.0)


# ---- backbone ----


@pytest.fixture(scope="module")
def vgg():
    module = VGG16((8,) * 13)
    image = np.zeros((32, 32, 3), np.float32)
    return module, random_params(module, image, (32, 32))


def test_vgg_gives_a_padded_image_its_own_features(vgg):
    module, params = vgg
    height, width = 37, 55  # odd here and after some of the poolings
    rng = np.random.default_rng(0)
    padded = (1e3 * rng.standard_normal((64, 80, 3))).astype(np.float32)
    padded[:height, :width] = rng.standard_normal((height, width, 3))
    expected = apply(module, params, padded[:height, :width], (height, width))
    actual = np.array(apply(module, params, padded, (height, width)))
    assert expected.shape == (2, 3, 8)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(actual[:2, :3], expected, rtol=1e-5, atol=1e-6)
    actual[:2, :3] = 0
    np.testing.assert_array_equal(actual, 0.0)


@pytest.mark.parametrize("frozen", [0, 4, 13])
def test_frozen_layers_get_no_gradient(vgg, frozen):
    module, params = vgg
    image = np.random.default_rng(0).standard_normal((32, 32, 3)).astype(np.float32)

    @functools.partial(jax.jit, compiler_options=QUICK)
    @jax.grad
    def gradient(params):
        features = module.apply({"params": params}, image, (32, 32), frozen_layers=frozen)
        return jnp.sum(features**2)

    gradients = gradient(params)
    zero = [not any(np.any(leaf) for leaf in gradients[name].values()) for name in LAYERS]
    assert zero == [layer < frozen for layer in range(13)]


# ---- bfloat16 ----


def test_bfloat16_rounds_products_and_nothing_else():
    _, _, boxes, mask, incidence = used(graph_inputs())
    subgraph_boxes = boxes[:K] + np.float32(5)
    exact = whole_graph(*random_model(), boxes, mask, subgraph_boxes, incidence)
    model, params = random_model(dtype="bfloat16")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    rounded = whole_graph(model, params, boxes, mask, subgraph_boxes, incidence)
    for name in ("objects", "object_logits", "box_deltas", "subject_term", "subgraph_term"):
        a, b = np.asarray(getattr(rounded, name)), np.asarray(getattr(exact, name))
        assert a.dtype == np.float32
        error = np.abs(a - b).max() / np.abs(b).max()
        assert 1e-5 < error < 0.05, f"{name}: {error}"
