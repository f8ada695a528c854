"""The training loop, in the order in which it happens: step, check, save, evaluate.

Everything that a step depends on (parameters, optimizer state, step number, data position) is in
the checkpoint, and random keys follow from the step number. A resumed run therefore repeats, bit
for bit, what an undisturbed one computes.
"""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from fnet_jax import bad_batch, multihost, optim, train_step
from fnet_jax import checkpoint as checkpoint_lib
from fnet_jax.errors import UserError
from fnet_jax.train_log import TrainLog
from fnet_jax.train_plan import Plan

# With config.train.non_finite="skip": this many steps in a row are no accident of the data.
_MAX_SKIPPED = 20


@dataclasses.dataclass(frozen=True)
class FitResult:
    """How training ended.

    Attributes:
      params: the parameter tree, on the first device.
      step: optimizer steps done in total.
      epoch: epochs completed.
      best_metric: best value of the deciding metric (see `train_plan`) in all evaluations; None if
        there was none.
      interrupted: True if SIGTERM or SIGINT ended the run before its last step or the evaluation
        after it (the state is saved).
    """

    params: dict[str, Any]
    step: int
    epoch: int
    best_metric: float | None
    interrupted: bool


def fit(
    *,
    loss_fn: train_step.LossFn,
    params: Mapping[str, Any],
    batches: train_step.Batches,
    num_images: int,
    config: Any,
    workdir: str,
    seed: int,
    image_name: Callable[[int], str] = str,
    evaluate_fn: Callable[[dict[str, Any]], Mapping[str, float]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume_from: str | None = None,
) -> FitResult:
    """Trains a model, or goes on with training where the workdir's latest checkpoint ends.

    Args:
      loss_fn: (params, example, key, phase) -> (loss, {term: scalar}) of one image; `example` is
        a batch without its leading axis, `phase` is static and says which losses count.
      params: initial parameter tree; its top-level names decide the groups (see `optim.group_of`).
      batches: yields for each micro-step a dict of arrays with one image per local device on the
        leading axis, "image_index" among them.
      num_images: images of the training split, over all processes; defines the epoch.
      config: the section `config.train`.
      workdir: folder of checkpoints and logs.
      seed: of all random sampling in training.
      image_name: what to call the image of an "image_index" in messages.
      evaluate_fn: params -> metrics; the checkpoint with the highest relationship recall@50 is the
        best (in stage "rpn": RPN recall@50). Runs each `eval_every_epochs` epochs (0: never before
        the end) and after the last one.
      metadata: JSON-able facts to keep with the weights: config, object_names, predicate_names,
        anchors. The last three must agree with those of the checkpoint resumed from.
      resume_from: another run's checkpoint to go on from while the workdir has none itself.

    Raises:
      NonFiniteLossError: if a loss term is NaN or infinite (with `non_finite` "skip": in many steps
        in a row); earlier checkpoints stay as they are, and the batch is written to the workdir.
      UserError: for an impossible config, or a checkpoint that is unreadable or does not fit.
    """
    metadata = dict(metadata or {})

    # ---- Where to begin
    checkpoint_lib.check_not_orphaned(workdir)
    saved = checkpoint_lib.restore_latest(workdir, params)
    source = workdir
    if saved is None and resume_from:
        saved, source = checkpoint_lib.restore(resume_from, params), resume_from
    first_step = saved.step if saved else 0
    # Going on with a finished run starts a fresh learning-rate schedule, as the original does.
    first_epoch = saved.metadata.get("first_epoch", 0) if saved else 0
    fresh_schedule = (
        saved is not None
        and config.stage == "continue"
        and (source != workdir or saved.stage != "continue")
    )
    if fresh_schedule:
        first_epoch = saved.epoch
    plan = Plan.from_config(config, num_images, first_epoch)
    metadata |= {"first_epoch": first_epoch, "steps_per_epoch": plan.steps_per_epoch}
    best_metric = checkpoint_lib.restore_best_metric(workdir, plan.best_metric)
    phase = plan.phase(first_step)
    state = train_step.fresh_state(saved.params if saved else params, phase, plan.optimizer)
    messages = []
    if saved:
        _check_stage(config.stage, saved, source)
        checkpoint_lib.check_metadata(saved, metadata, source)
        _check_epoch_length(plan, saved, source)
        if fresh_schedule and saved.step >= plan.last_step:
            raise UserError(
                f"{source} is at step {saved.step}, and config.train.epochs ends at step "
                f"{plan.last_step}; raise config.train.epochs to go on"
            )
        _restore_data_position(batches, saved, source)
        messages.append(f"going on from {source} at step {first_step} of {plan.last_step}")
        optimizer_state = checkpoint_lib.unflatten_state(saved.optimizer, state.optimizer)
        if optimizer_state is None:
            messages.append(
                "stage or optimizer differ from the checkpoint's: fresh optimizer state"
            )
        else:
            state = state._replace(optimizer=train_step.replicate(optimizer_state))

    if saved and source == workdir:
        if multihost.is_first():
            checkpoint_lib.set_damaged_aside(workdir, first_step)
        multihost.barrier("damaged checkpoints are set aside")
    checkpoints = checkpoint_lib.Checkpoints(workdir, config.keep_checkpoints)
    log = TrainLog(
        workdir,
        every=config.log_every_steps,
        first_step=first_step,
        last_step=plan.last_step,
        images_per_step=plan.images_per_step,
        window=saved.log_window if saved else {},
        enabled=multihost.is_first(),
    )
    for message in messages:
        log.message(message)

    def build(phase: optim.Phase) -> train_step.StepFunctions:
        return train_step.make_step_functions(
            loss_fn,
            phase,
            plan.optimizer,
            seed=seed,
            accumulate_steps=config.accumulate_steps,
            skip_non_finite=plan.skips,
        )

    def settle(pending: train_step.PendingStep | None) -> None:
        """Checks and logs the losses of a step that was started."""
        nonlocal clock, waited, skipped_in_a_row
        if pending is None:
            return
        terms = train_step.finite_terms(pending)
        if terms is not None:
            skipped_in_a_row = 0
        else:
            skipped_in_a_row += 1
            cause = train_step.what_is_not_finite(pending, image_name)
            try:
                path = bad_batch.write(workdir, pending, cause)
                where = f"the batch is in {path}, and --mode replay runs it again"
            except UserError as error:
                where = f"the batch is lost: {error}"
            if not plan.skips or skipped_in_a_row > _MAX_SKIPPED:
                raise train_step.NonFiniteLossError(
                    f"{cause}. Training stops and saves nothing more "
                    f"({_kept(checkpoints.step(checkpoint_lib.LATEST))}); {where}. "
                    "Look at these images, or lower config.train.learning_rate"
                )
            log.message(f"skipped. {cause}; {where}")
        now = time.perf_counter()
        log.step(pending.step, pending.epoch, pending.learning_rate, terms, now - clock, waited)
        clock, waited = now, 0.0

    def save(kind: str, step: int) -> None:
        checkpoints.save(
            kind,
            checkpoint_lib.Checkpoint(
                step=step,
                epoch=plan.epoch(step),
                params=jax.device_get(train_step.params_of(state)),
                optimizer=checkpoint_lib.flatten_state(state.optimizer),
                data_states=multihost.gather(data_state),
                stage=config.stage,
                best_metric=best_metric,
                best_metric_name=plan.best_metric,
                log_window=log.window,
                metadata=metadata,
            ),
        )

    def evaluate(step: int) -> None:
        """Evaluates what `step` steps made, once it is on disk and cannot be lost."""
        nonlocal best_metric, clock
        checkpoints.wait(checkpoint_lib.LATEST)
        metrics = evaluate_fn(train_step.params_of(state))
        log.evaluation(step, plan.epoch(step), metrics)
        metric = float(metrics[plan.best_metric])
        if best_metric is None or metric > best_metric:
            best_metric = metric
            # A kill after the save and before the mark: these very parameters are there already.
            if checkpoints.step(checkpoint_lib.BEST) != step:
                save(checkpoint_lib.BEST, step)
        checkpoint_lib.mark_evaluated(workdir, step)
        clock = time.perf_counter()

    # ---- The loop
    step, interrupted, skipped_in_a_row = first_step, False, 0
    data_state = batches.get_state()  # what follows the images of `step` steps
    functions = build(phase)
    pending = None
    clock, waited = time.perf_counter(), 0.0  # since the last log.step
    with _StopRequest() as stop, contextlib.closing(log), contextlib.closing(checkpoints):
        # An evaluation that the end of the program before prevented.
        owed = saved is not None and source == workdir and plan.evaluates_after(step)
        if owed and evaluate_fn is not None and checkpoint_lib.last_evaluated(workdir) != step:
            evaluate(step)
        while step < plan.last_step and not interrupted:
            epoch = plan.epoch(step)
            try:
                state, started = train_step.dispatch(
                    functions,
                    state,
                    batches,
                    step=step,
                    epoch=epoch,
                    learning_rate=plan.learning_rate(step),
                    accumulate_steps=config.accumulate_steps,
                )
            except Exception:
                # Ctrl-C reaches the processes that load images, too.
                if not stop.asked:
                    raise
                settle(pending)
                save(checkpoint_lib.LATEST, step)
                interrupted = True
                break
            data_state = batches.get_state()
            waited += started.wait_seconds
            # Looking at the losses of the step before while this one runs keeps devices busy.
            settle(pending)
            pending = started
            step += 1

            interrupted = stop.stops_at(step)
            evaluates = evaluate_fn is not None and plan.evaluates_after(step)
            saves = evaluates or interrupted or plan.saves_after(step)
            if saves:
                # Nothing is saved before its own losses are known to be finite.
                settle(pending)
                pending = None
            if plan.phase(step) != phase:
                phase = plan.phase(step)
                functions = build(phase)
                state = train_step.fresh_state(train_step.params_of(state), phase, plan.optimizer)
            if saves:
                save(checkpoint_lib.LATEST, step)
                clock = time.perf_counter()
            if evaluates and not interrupted:
                evaluate(step)
        if interrupted:
            checkpoints.wait(checkpoint_lib.LATEST)
            log.message(f"{stop.name}: saved step {step}; the same command goes on from there")
    return FitResult(train_step.params_of(state), step, plan.epoch(step), best_metric, interrupted)


def _check_stage(stage: str, saved: checkpoint_lib.Checkpoint, source: str) -> None:
    if stage not in (saved.stage, "continue"):
        raise UserError(
            f"{source} holds a run of stage {saved.stage!r}, not {stage!r}; use another --workdir "
            "(and config.train.init_from for the weights), or config.train.stage=continue"
        )


def _check_epoch_length(plan: Plan, saved: checkpoint_lib.Checkpoint, source: str) -> None:
    before = saved.metadata.get("steps_per_epoch", plan.steps_per_epoch)
    if before != plan.steps_per_epoch:
        raise UserError(
            f"{source} holds a run of {before} steps an epoch, now there would be "
            f"{plan.steps_per_epoch}; use as many devices, config.train.accumulate_steps and "
            "training images as before, or start from its weights with config.train.init_from and "
            "another --workdir"
        )


def _kept(step: int | None) -> str:
    return "there is no checkpoint yet" if step is None else f"step {step} is kept"


def _restore_data_position(
    batches: train_step.Batches, saved: checkpoint_lib.Checkpoint, source: str
) -> None:
    # Positions count the images of all processes, so it does not matter how many there were.
    position, *others = saved.data_states
    if any(other != position for other in others):
        raise UserError(
            f"The checkpoint at {source} holds different positions in the data for its "
            f"{len(saved.data_states)} processes; train from its weights with "
            "--config.train.init_from and another --workdir"
        )
    batches.set_state(position)


class _StopRequest:
    """Turns SIGTERM and SIGINT into a request to stop after the current step.

    A second signal of the kind does what it always does.

    Attributes:
      asked: whether one came to this process.
      name: of the signal.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __enter__(self):
        self.asked, self.name = False, "SIGTERM"
        handlers = dict.fromkeys(self._SIGNALS, self._ask)
        if jax.process_count() > 1:
            # JAX listens to SIGTERM itself, and makes all processes agree on a step.
            handlers = {signal.SIGINT: self._pass_on}
        if threading.current_thread() is not threading.main_thread():
            handlers = {}  # Python allows no other thread to listen.
        self._previous = {n: signal.signal(n, handler) for n, handler in handlers.items()}
        return self

    def __exit__(self, *_):
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous = {}

    def _ask(self, number, _):
        self.asked, self.name = True, signal.Signals(number).name
        signal.signal(number, self._previous.pop(number))

    def _pass_on(self, number, _):
        signal.signal(number, self._previous.pop(number))
        os.kill(os.getpid(), signal.SIGTERM)

    def stops_at(self, step: int) -> bool:
        """Whether to stop with this many steps done; the same answer in all processes."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked
