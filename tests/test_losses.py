"""Every loss term against its formula in float64 NumPy, and at the edges of that formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnet_jax import losses
from fnet_jax.structures import AnchorTargets, ObjectTargets, PairTargets

ROWS, CLASSES = 7, 4
WEIGHTS = (1.0, 0.25, 3.0, 1.5)


def rng_of(seed=0):
    return np.random.default_rng(seed)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), -1, keepdims=True))


def mean_cross_entropy(logits, labels, mask, weights=None):
    """Plainly: sum of weight x -log p over used rows, over the sum of their weights."""
    total = weight_sum = 0.0
    for row, label, used in zip(log_softmax(logits), labels, mask, strict=True):
        if used:
            weight = 1.0 if weights is None else weights[label]
            total -= weight * row[label]
            weight_sum += weight
    return total / weight_sum if weight_sum else 0.0


def smooth_l1_sum(deltas, targets, foreground):
    difference = np.abs(np.asarray(deltas, np.float64) - targets)[foreground]
    return np.sum(np.where(difference < 1, difference**2 / 2, difference - 0.5))


def object_targets(labels, first=None, mask=None, deltas=None) -> ObjectTargets:
    number = len(labels)
    return ObjectTargets(
        boxes=np.zeros((number, 4), np.float32),
        scores=np.zeros(number, np.float32),
        mask=np.ones(number, bool) if mask is None else np.asarray(mask),
        labels=np.asarray(labels, np.int32),
        deltas=np.zeros((number, 4), np.float32) if deltas is None else deltas,
        gt_index=np.zeros(number, np.int32),
        first=np.zeros(number, bool) if first is None else np.asarray(first),
    )


def value_and_grad(function, *args):
    """(value, gradients of all `args`), in NumPy."""
    run = jax.jit(jax.value_and_grad(function, argnums=tuple(range(len(args)))))
    return jax.tree.map(np.asarray, run(*map(jnp.asarray, args)))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy(weights):
    rng = rng_of()
    logits = (3 * rng.standard_normal((ROWS, CLASSES))).astype(np.float32)
    labels = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    mask = np.array([True, False, True, True, False, True, True])
    logits[1] = 1e30, 0, -1e30, 0  # an unused row may hold anything

    def loss(x):
        return losses.cross_entropy(x, labels, mask, weights)

    value, (gradient,) = value_and_grad(loss, logits)
    np.testing.assert_allclose(value, mean_cross_entropy(logits, labels, mask, weights), rtol=1e-5)
    np.testing.assert_array_equal(gradient[~mask], 0.0)
    assert (np.abs(gradient[mask]).max(axis=1) > 0).all()


def test_cross_entropy_without_rows_is_zero():
    logits, labels = np.ones((ROWS, CLASSES), np.float32), np.zeros(ROWS, np.int32)
    value, (gradient,) = value_and_grad(
        lambda x: losses.cross_entropy(x, labels, np.zeros(ROWS, bool), WEIGHTS), logits
    )
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_box_loss():
    rng = rng_of(1)
    deltas, targets = (2 * rng.standard_normal((2, ROWS, 4))).astype(np.float32)
    foreground = np.array([True, False, True, True, False, False, True])
    expected = smooth_l1_sum(deltas, targets, foreground) / (4 + 0.5)
    targets[~foreground] = np.inf  # encoding against an unused, empty box
    value, (gradient,) = value_and_grad(
        lambda x: losses.box_loss(x, targets, foreground, 0.5), deltas
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_array_equal(gradient[~foreground], 0.0)
    assert np.isfinite(gradient).all()
    assert (gradient[foreground] != 0.0).all()


def test_rpn_losses():
    rng = rng_of(2)
    h, w, anchors = 2, 3, 2
    logits = rng.standard_normal((h, w, 2, anchors)).astype(np.float32)
    deltas = rng.standard_normal((h, w, anchors, 4)).astype(np.float32)
    labels = rng.integers(-1, 2, (h, w, anchors)).astype(np.int32)
    targets = rng.standard_normal((h, w, anchors, 4)).astype(np.float32)
    terms = jax.jit(losses.rpn_losses)(
        logits, deltas, AnchorTargets(labels.reshape(-1), targets.reshape(-1, 4))
    )
    rows = [(i, j, a) for i in range(h) for j in range(w) for a in range(anchors)]
    expected = mean_cross_entropy(
        [[logits[i, j, 0, a], logits[i, j, 1, a]] for i, j, a in rows],
        [max(labels[row], 0) for row in rows],
        [labels[row] >= 0 for row in rows],
    )
    assert {-1, 0, 1} == set(labels.flat)
    np.testing.assert_allclose(terms["rpn_class"], expected, rtol=1e-5)
    expected = smooth_l1_sum(deltas, targets, labels == 1) / (np.sum(labels == 1) + 1e-4)
    np.testing.assert_allclose(terms["rpn_box"], expected, rtol=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_object_losses(weights):
    rng = rng_of(3)
    labels = np.array([2, 1, 3, 0, 0, 0, 0])
    mask = np.arange(ROWS) < 5
    logits = rng.standard_normal((ROWS, CLASSES)).astype(np.float32)
    deltas = rng.standard_normal((ROWS, CLASSES, 4)).astype(np.float32)
    wanted = rng.standard_normal((ROWS, 4)).astype(np.float32)
    targets = object_targets(labels, mask=mask, deltas=wanted)
    terms = jax.jit(lambda x, y: losses.object_losses(x, y, targets, weights))(logits, deltas)
    expected = mean_cross_entropy(logits, labels, mask, weights)
    np.testing.assert_allclose(terms["object_class"], expected, rtol=1e-5)
    own = deltas[np.arange(ROWS), labels]  # only the boxes of the right class learn
    expected = smooth_l1_sum(own, wanted, labels > 0) / (3 + 1e-5)
    np.testing.assert_allclose(terms["object_box"], expected, rtol=1e-5)


def test_predicate_loss():
    rng = rng_of(4)
    logits = rng.standard_normal((ROWS, CLASSES)).astype(np.float32)
    index = np.zeros(ROWS, np.int32)
    labels = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    mask = np.arange(ROWS) != 2
    targets = PairTargets(subjects=index, objects=index, labels=labels, mask=mask)
    terms = jax.jit(lambda x: losses.predicate_loss(x, targets, WEIGHTS))(logits)
    expected = mean_cross_entropy(logits, labels, mask, WEIGHTS)
    np.testing.assert_allclose(terms["predicate"], expected, rtol=1e-5)


def test_label_probability():
    logits = rng_of(5).standard_normal((ROWS, CLASSES)).astype(np.float32)
    labels = np.arange(ROWS, dtype=np.int32) % CLASSES
    expected = np.exp(log_softmax(logits))[np.arange(ROWS), labels]
    np.testing.assert_allclose(
        jax.jit(losses.label_probability)(logits, labels), expected, rtol=1e-5
    )


def test_duplicate_loss():
    probability, factor = rng_of(6).uniform(0.1, 0.9, (2, ROWS)).astype(np.float32)
    labels = np.array([2, 2, 1, 3, 0, 0, 0])
    first = np.array([True, False, True, True, False, False, False])
    targets = object_targets(labels, first)
    value, gradients = value_and_grad(
        lambda p, f: losses.duplicate_loss(p, f, targets)["duplicate"], probability, factor
    )
    p = np.float64(probability * factor)[:4]
    expected = -np.mean(np.log(np.where(first[:4], p, 1 - p)))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[4:], 0.0)
        # More of it is right for the first of an object, wrong for the others.
        np.testing.assert_array_equal(gradient[:4] < 0, first[:4])


@pytest.mark.parametrize(
    ("probability", "first", "expected"),
    [(0.0, True, 100.0), (0.0, False, 0.0), (1.0, True, 0.0), (1.0, False, 100.0)],
)
def test_duplicate_loss_at_certainty(probability, first, expected):
    targets = object_targets([1], [first])
    value, gradients = value_and_grad(
        lambda p, f: losses.duplicate_loss(p, f, targets)["duplicate"],
        np.array([probability], np.float32),
        np.ones(1, np.float32),
    )
    assert value == expected
    assert np.isfinite(gradients).all()


@pytest.mark.parametrize("probability", [1e-45, 1e-40, 1e-38, 1e-30])
def test_duplicate_loss_next_to_zero_has_finite_gradients(probability):
    targets = object_targets([1], [True])
    value, gradients = value_and_grad(
        lambda p, f: losses.duplicate_loss(p, f, targets)["duplicate"],
        np.array([probability], np.float32),
        np.full(1, 0.5, np.float32),
    )
    assert 69.0 < value <= 104.0
    assert np.isfinite(gradients).all()


def test_without_foreground_only_classification_is_left():
    rng = rng_of(7)
    logits = rng.standard_normal((ROWS, CLASSES)).astype(np.float32)
    deltas = rng.standard_normal((ROWS, CLASSES, 4)).astype(np.float32)
    factor = rng.uniform(0, 1, ROWS).astype(np.float32)
    targets = object_targets(np.zeros(ROWS))

    def box_and_duplicate(logits, deltas, factor):
        probability = losses.label_probability(logits, targets.labels)
        terms = losses.object_losses(logits, deltas, targets)
        return (
            terms["object_box"] + losses.duplicate_loss(probability, factor, targets)["duplicate"]
        )

    value, gradients = value_and_grad(box_and_duplicate, logits, deltas, factor)
    assert value == 0.0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


def test_weighted_total():
    weights = losses.LossWeights(
        object_class=1.0, object_box=10.0, predicate=100.0, duplicate=1e3, rpn=1e4, rpn_box=0.5
    )
    graph = {"object_class": 1.0, "object_box": 2.0, "predicate": 3.0, "duplicate": 4.0}
    rpn = {"rpn_class": 5.0, "rpn_box": 6.0}
    graph, rpn = jax.tree.map(np.float32, (graph, rpn))
    assert losses.weighted_total(graph, weights) == 4321.0
    assert losses.weighted_total(rpn, weights) == 5 + 0.5 * 6
    assert losses.weighted_total(graph | rpn, weights) == 84321.0
    assert losses.weighted_total({}, weights) == 0.0
