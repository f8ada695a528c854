"""Stages, groups and optimizers, against tables and against PyTorch's formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnet_jax import optim
from fnet_jax.errors import UserError

VGG = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]


def toy_params(seed: int = 0) -> dict:
    """One small matrix per layer, under the model's top-level names."""
    rng = np.random.default_rng(seed)

    def layer():
        return {
            "kernel": rng.normal(size=(2, 3)).astype(np.float32),
            "bias": rng.normal(size=3).astype(np.float32),
        }

    return {
        "backbone": {name: layer() for name in VGG},
        "rpn": {"conv": layer(), "score": layer()},
        "object_fc": {"fc1": layer()},
        "message_passing_0": {"object_to_subgraph_key": layer(), "relation": {"key": layer()}},
        "predicate_score": layer(),
        "duplicate_removal": {"rescore": layer()},
    }


def layers(flat: dict) -> set[str]:
    return {path.rsplit("/", 1)[0] for path in flat}


BACKBONE_REST = {f"backbone/{name}" for name in VGG[4:]}
RPN = {"rpn/conv", "rpn/score"}
MESSAGES = {"message_passing_0/object_to_subgraph_key", "message_passing_0/relation/key"}
HEADS = {"object_fc/fc1", "predicate_score", "duplicate_removal/rescore"}
ALL = BACKBONE_REST | RPN | MESSAGES | HEADS


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        # per phase: start epoch, trainable layers, RPN loss, graph loss, frozen convolutions
        ("rpn", [(0, RPN, True, False, 13)]),
        ("from_scratch", [(0, ALL, True, True, 4)]),
        ("from_rpn", [(0, ALL, True, True, 4)]),
        ("end_to_end", [(0, RPN | MESSAGES | HEADS, True, True, 13), (3, ALL, True, True, 4)]),
        ("continue", [(0, ALL, True, True, 4)]),
        ("message_passing", [(0, MESSAGES, False, True, 13)]),
    ],
)
def test_stage_table(stage, expected):
    found = []
    for phase in optim.phases(stage, lr_decay_epochs=3, frozen_backbone_layers=4):
        trainable, frozen = optim.split(toy_params(), phase)
        assert not set(trainable) & set(frozen)
        found.append(
            (
                phase.start_epoch,
                layers(trainable),
                phase.rpn_loss,
                phase.graph_loss,
                phase.frozen_backbone_layers,
            )
        )
    assert found == expected


def test_merge_undoes_split():
    params = toy_params()
    (phase,) = optim.phases("message_passing", lr_decay_epochs=2, frozen_backbone_layers=4)
    merged = optim.merge(*optim.split(params, phase))
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_schedule_restarts_when_the_backbone_is_freed():
    stage = optim.phases("end_to_end", lr_decay_epochs=3, frozen_backbone_layers=4)
    rates = [
        optim.learning_rate(
            epoch, optim.phase_at(stage, epoch), base=0.01, decay=0.1, decay_epochs=3
        )
        for epoch in range(10)
    ]
    np.testing.assert_allclose(rates, [0.01] * 6 + [0.001] * 3 + [0.0001], rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"stage": "RPN"}, "stage"),
        ({"lr_decay_epochs": 0}, "lr_decay_epochs"),
        ({"frozen_backbone_layers": 14}, "frozen_backbone_layers"),
    ],
)
def test_impossible_stages_are_named(options, names):
    options = {"stage": "rpn", "lr_decay_epochs": 1, "frozen_backbone_layers": 4} | options
    with pytest.raises(UserError, match=f"config.train.{names}"):
        optim.phases(options.pop("stage"), **options)


def test_unknown_optimizer_and_empty_stage_are_named():
    with pytest.raises(UserError, match=r"config\.train\.optimizer"):
        make("lion")
    params = toy_params()
    del params["message_passing_0"]
    (phase,) = optim.phases("message_passing", lr_decay_epochs=1, frozen_backbone_layers=4)
    with pytest.raises(UserError, match="message_passing"):
        optim.split(params, phase)


def make(name, **options):
    defaults = {
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "clip_norm": 10.0,
        "backbone_lr_factor": 0.1,
    }
    return optim.make_optimizer(name, **(defaults | options))


class TorchLike:
    """torch.optim's SGD, Adam and Adagrad after torch-style clipping, in float64 NumPy."""

    def __init__(self, name, params, factors, *, clip, decay, momentum=0.9, nesterov=True):
        self.name, self.factors, self.clip, self.decay = name, factors, clip, decay
        self.momentum, self.nesterov = momentum, nesterov
        self.params = {k: np.float64(v) for k, v in params.items()}
        self.first = dict.fromkeys(params, 0.0)
        self.second = dict.fromkeys(params, 0.0)
        self.count = 0

    def step(self, gradients, rate):
        self.count += 1
        norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in gradients.values()))
        shrink = self.clip / max(norm, self.clip)
        for k, p in self.params.items():
            g = np.float64(gradients[k]) * shrink + self.decay * p
            self.params[k] = p - rate * self.factors[k] * getattr(self, self.name)(k, g)

    def sgd(self, k, g):
        self.first[k] = self.momentum * self.first[k] + g
        return g + self.momentum * self.first[k] if self.nesterov else self.first[k]

    def adam(self, k, g):
        self.first[k] = 0.9 * self.first[k] + 0.1 * g
        self.second[k] = 0.999 * self.second[k] + 0.001 * g * g
        denominator = np.sqrt(self.second[k]) / np.sqrt(1 - 0.999**self.count) + 1e-8
        return self.first[k] / (1 - 0.9**self.count) / denominator

    def adagrad(self, k, g):
        self.second[k] = self.second[k] + g * g
        return g / (np.sqrt(self.second[k]) + 1e-10)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad"])
def test_optimizers_follow_pytorch(name, nesterov):
    """Eight steps over three lr steps; clipping bites on some of them, tiny gradients included."""
    stage = optim.phases("from_rpn", lr_decay_epochs=3, frozen_backbone_layers=4)
    trainable, _ = optim.split(toy_params(), stage[0])
    factors = {k: 0.1 if k.startswith("backbone/") else 1.0 for k in trainable}
    theirs = TorchLike(name, trainable, factors, clip=10.0, decay=5e-4, nesterov=nesterov)
    optimizer = make(name, nesterov=nesterov)
    ours, state = jax.tree.map(jnp.asarray, trainable), optimizer.init(trainable)

    @jax.jit
    def step(params, state, gradients, rate):
        directions, state = optimizer.update(gradients, state, params)
        return optim.descend(params, directions, rate), state

    rng = np.random.default_rng(1)
    clipped = 0
    for epoch in range(8):
        # Tiny gradients show a misplaced epsilon, large ones are clipped.
        size = (1e-6, 0.3, 3.0)[epoch % 3]
        gradients = {k: np.float32(size * rng.normal(size=v.shape)) for k, v in trainable.items()}
        clipped += np.sqrt(sum((g**2).sum() for g in gradients.values())) > 10.0
        rate = optim.learning_rate(epoch, stage[0], base=0.01, decay=0.1, decay_epochs=3)
        theirs.step(gradients, rate)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam promotes its step counter
            ours, state = step(ours, state, gradients, jnp.float32(rate))
    assert 0 < clipped < 8
    for path, start in trainable.items():
        moved = np.abs(theirs.params[path] - start).max()
        assert moved > 1e-5
        np.testing.assert_allclose(
            ours[path] - start, theirs.params[path] - start, atol=1e-3 * moved, err_msg=path
        )


def test_backbone_moves_by_its_factor():
    params = {"backbone/conv5_3/kernel": jnp.ones(3), "rpn/conv/kernel": jnp.ones(3)}
    optimizer = make("sgd", weight_decay=0.0)
    directions, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(
        directions["backbone/conv5_3/kernel"], 0.1 * directions["rpn/conv/kernel"], rtol=1e-6
    )


def test_optimizer_state_covers_trainable_parameters_only():
    (phase,) = optim.phases("rpn", lr_decay_epochs=3, frozen_backbone_layers=4)
    trainable, _ = optim.split(toy_params(), phase)
    state = make("sgd").init(trainable)
    assert len(jax.tree.leaves(state)) == len(trainable) == 4
