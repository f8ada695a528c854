"""One optimizer step: compiled per phase, one image per device, gradients accumulated and averaged.

Random keys are derived from the step number and the place of an image within the step, so a step
computes the same on four devices, in four accumulated micro-steps, and after a restart.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fnet_jax import optim
from fnet_jax.errors import UserError

_AXIS = "devices"

Batch = dict[str, np.ndarray]
Terms = dict[str, jax.Array]
LossFn = Callable[[Any, Batch, jax.Array, optim.Phase], tuple[jax.Array, Terms]]


class Batches(Protocol):
    """An endless iterator of batches whose position can be saved as JSON."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class NonFiniteLossError(UserError):
    """Training stopped because a loss term or the gradient is NaN or infinite."""


class TrainState(NamedTuple):
    """What changes from step to step, the same on every device.

    Attributes:
      trainable: parameters that the phase trains, flat.
      frozen: the other ones.
      optimizer: state of the optimizer, of the trainable parameters only.
    """

    trainable: optim.FlatParams
    frozen: optim.FlatParams
    optimizer: optax.OptState


class StepFunctions(NamedTuple):
    """The compiled parts of an optimizer step.

    Gradients are compiled once per image size, the rest once; with everything in one program an
    accumulated step would have to be compiled for each sequence of sizes.
    """

    gradients: Callable
    add: Callable
    update: Callable


def image_key(seed: int, step, place) -> jax.Array:
    """The random key of an image.

    Args:
      step: optimizer steps done before this one.
      place: of the image within the step, over micro-steps, processes and devices.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), place)


def make_step_functions(
    loss_fn: LossFn,
    phase: optim.Phase,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate_steps: int,
    skip_non_finite: bool = False,
) -> StepFunctions:
    """Builds the pmapped functions of a phase; leading axes of arrays "per device" are devices.

    With `skip_non_finite`, an update whose loss or gradient is NaN or infinite changes nothing.

    - gradients(trainable, frozen, batch, step, micro_step) -> (gradients, terms), both per device
    - add(gradient sums, term sums, gradients, terms) -> (gradient sums, term sums), per device
    - update(trainable, optimizer state, (gradient sums, term sums), learning rate) ->
      (trainable, optimizer state, terms averaged over all images of the step)
    """

    def gradients(trainable, frozen, example, step, micro_step):
        # The place of an image within the step, whatever the devices: four devices and four
        # accumulated steps draw the same samples.
        place = micro_step * jax.lax.axis_size(_AXIS) + jax.lax.axis_index(_AXIS)
        key = image_key(seed, step, place)

        def objective(trainable):
            return loss_fn(optim.merge(trainable, frozen), example, key, phase)

        (total, terms), grads = jax.value_and_grad(objective, has_aux=True)(trainable)
        terms = {name: jnp.asarray(value, jnp.float32) for name, value in terms.items()}
        return grads, {**terms, "total": total}

    def add(gradient_sums, term_sums, grads, terms):
        return jax.tree.map(jnp.add, (gradient_sums, term_sums), (grads, terms))

    def update(trainable, state, sums, rate):
        grads, terms = jax.lax.pmean(jax.tree.map(lambda x: x / accumulate_steps, sums), _AXIS)
        squares = (jnp.sum(jnp.square(leaf)) for leaf in grads.values())
        terms["gradient_norm"] = jnp.sqrt(sum(squares))
        directions, new_state = optimizer.update(grads, state, trainable)
        new = optim.descend(trainable, directions, rate), new_state
        if skip_non_finite:
            finite = jnp.isfinite(terms["gradient_norm"]) & jnp.isfinite(terms["total"])
            new = jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, (trainable, state))
        return *new, terms

    return StepFunctions(
        gradients=jax.pmap(gradients, axis_name=_AXIS, in_axes=(None, None, 0, None, None)),
        # The terms of each image stay readable: they name the one that breaks a run.
        add=jax.pmap(add, axis_name=_AXIS, donate_argnums=0),
        update=jax.pmap(
            update,
            axis_name=_AXIS,
            in_axes=(None, None, 0, None),
            out_axes=None,
            donate_argnums=(0, 1),
        ),
    )


@dataclasses.dataclass(frozen=True)
class PendingStep:
    """A step that was started, but whose losses nobody has looked at yet.

    Attributes:
      step: optimizer steps done with this one.
      epoch: the epoch it belongs to, from 0.
      learning_rate: what it used.
      terms: loss terms, averaged over its images.
      image_terms: the same per image: for each micro-step, one value per local device.
      batches: of each micro-step, as they were given to the devices.
      wait_seconds: time spent waiting for its data.
    """

    step: int
    epoch: int
    learning_rate: float
    terms: Terms
    image_terms: list[Terms]
    batches: list[Batch]
    wait_seconds: float

    @property
    def image_indices(self) -> list[np.ndarray]:
        """ "image_index" of the images of each micro-step."""
        return [np.asarray(batch["image_index"]) for batch in self.batches]


def dispatch(
    functions: StepFunctions,
    state: TrainState,
    batches: Batches,
    *,
    step: int,
    epoch: int,
    learning_rate: float,
    accumulate_steps: int,
) -> tuple[TrainState, PendingStep]:
    """Reads the data of one optimizer step and starts it; waits for the data only."""
    sums, image_terms, used, wait = None, [], [], 0.0
    for micro_step in range(accumulate_steps):
        begin = time.perf_counter()
        batch = next(batches)
        wait += time.perf_counter() - begin
        devices, images = jax.local_device_count(), len(batch["image_index"])
        if images != devices:
            raise ValueError(f"a batch of {images} images for {devices} devices")
        gradients, terms = functions.gradients(
            state.trainable, state.frozen, batch, np.int32(step), np.int32(micro_step)
        )
        image_terms.append(terms)
        used.append(batch)
        sums = (gradients, terms) if sums is None else functions.add(*sums, gradients, terms)
    trainable, optimizer_state, mean_terms = functions.update(
        state.trainable, state.optimizer, sums, np.float32(learning_rate)
    )
    pending = PendingStep(
        step=step + 1,
        epoch=epoch,
        learning_rate=learning_rate,
        terms=mean_terms,
        image_terms=image_terms,
        batches=used,
        wait_seconds=wait,
    )
    return TrainState(trainable, state.frozen, optimizer_state), pending


def finite_terms(pending: PendingStep) -> dict[str, float] | None:
    """Waits for a step and returns its averaged loss terms; None if any is NaN or infinite."""
    means = _means(pending)
    return means if all(math.isfinite(value) for value in means.values()) else None


def what_is_not_finite(pending: PendingStep, image_name: Callable[[int], str]) -> str:
    """Names the step, the terms and the images where something is NaN or infinite."""
    causes = []
    for terms, indices in zip(pending.image_terms, pending.image_indices, strict=True):
        values = {name: _local_values(array) for name, array in terms.items()}
        for place, index in enumerate(indices.tolist()):
            broken = [f"{k} = {v[place]}" for k, v in values.items() if not np.isfinite(v[place])]
            # The total follows from its terms, unless it overflowed by itself.
            broken = [text for text in broken if not text.startswith("total =")] or broken
            if broken:
                causes.append(f"{', '.join(broken)} for image {index} ({image_name(index)})")
    if not causes:
        names = [f"{i} ({image_name(i)})" for i in np.concatenate(pending.image_indices).tolist()]
        broken = [
            f"{name} = {value}"
            for name, value in _means(pending).items()
            if not math.isfinite(value)
        ]
        causes = [f"{', '.join(broken)} while the losses of images {', '.join(names)} are finite"]
    return f"Step {pending.step}: {'; '.join(causes)}"


def _means(pending: PendingStep) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(pending.terms).items()}


def _local_values(array: jax.Array) -> np.ndarray:
    """Values of a per-device array (devices,) on this process's devices, in their order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def replicate(tree: Any) -> Any:
    """Copies of all leaves on each local device. Copies, because the steps donate them."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (_AXIS,))
    everywhere = jax.NamedSharding(mesh, jax.P())
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x), everywhere, may_alias=False), tree)


def fresh_state(
    params: Mapping[str, Any],
    phase: optim.Phase,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """The state at the start of a phase."""
    trainable, frozen = optim.split(params, phase)
    return TrainState(*(replicate(x) for x in (trainable, frozen, optimizer.init(trainable))))


def params_of(state: TrainState) -> dict[str, Any]:
    """The parameter tree on the first device, without copying."""
    merged = optim.merge(state.trainable, state.frozen)
    return jax.tree.map(lambda x: x.addressable_shards[0].data, merged)
