"""What happens at which step of a training run: phase, learning rate, evaluation, checkpoint."""

import dataclasses
import math
from typing import Any

import jax
import optax

from fnet_jax import optim
from fnet_jax.errors import UserError

# What makes a checkpoint the best one; the second where only the proposal network trains.
BEST_METRIC = "relationship_recall@50"
BEST_RPN_METRIC = "rpn_recall@50"

LR_SCHEDULES = ("step", "cosine")
NON_FINITE = ("stop", "skip")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens at which step; "after step n" means that n optimizer steps are done."""

    config: Any
    phases: tuple[optim.Phase, ...]
    optimizer: optax.GradientTransformation
    images_per_step: int
    steps_per_epoch: int
    planned_steps: int  # of all epochs
    last_step: int  # the same, or earlier where `max_steps` says so

    @classmethod
    def from_config(cls, config: Any, num_images: int, first_epoch: int = 0) -> "Plan":
        """Reads the section `config.train`; the phases are counted from `first_epoch`."""
        positive = ("epochs", "accumulate_steps", "log_every_steps", "checkpoint_every_steps")
        for name in (*positive, "keep_checkpoints"):
            if config[name] < 1:
                raise UserError(f"config.train.{name}={config[name]} must be at least 1")
        if config.lr_schedule not in LR_SCHEDULES:
            raise UserError(
                f"config.train.lr_schedule={config.lr_schedule!r} is unknown; "
                f"use one of {', '.join(LR_SCHEDULES)}"
            )
        if config.non_finite not in NON_FINITE:
            raise UserError(
                f"config.train.non_finite={config.non_finite!r} is unknown; "
                f"use one of {', '.join(NON_FINITE)}"
            )
        if num_images < 1:
            raise UserError("The training split has no images; see config.dataset.train_split")
        images_per_step = jax.device_count() * config.accumulate_steps
        steps_per_epoch = math.ceil(num_images / images_per_step)
        steps = config.epochs * steps_per_epoch
        phases = optim.phases(
            config.stage,
            lr_decay_epochs=config.lr_decay_epochs,
            frozen_backbone_layers=config.frozen_backbone_layers,
        )
        return cls(
            config=config,
            phases=tuple(
                dataclasses.replace(phase, start_epoch=phase.start_epoch + first_epoch)
                for phase in phases
            ),
            optimizer=optim.make_optimizer(
                config.optimizer,
                momentum=config.momentum,
                nesterov=config.nesterov,
                weight_decay=config.weight_decay,
                clip_norm=config.clip_norm,
                backbone_lr_factor=config.backbone_lr_factor,
            ),
            images_per_step=images_per_step,
            steps_per_epoch=steps_per_epoch,
            planned_steps=steps,
            last_step=steps if config.max_steps is None else min(steps, config.max_steps),
        )

    @property
    def best_metric(self) -> str:
        """Name of the metric that decides which checkpoint is the best."""
        graph = any(phase.graph_loss for phase in self.phases)
        return BEST_METRIC if graph else BEST_RPN_METRIC

    @property
    def skips(self) -> bool:
        """Whether a step whose numbers are not finite is passed over instead of ending the run."""
        return self.config.non_finite == "skip"

    def epoch(self, step: int) -> int:
        """Epochs completed after this many steps, which is also the epoch of the next step."""
        return step // self.steps_per_epoch

    def phase(self, step: int) -> optim.Phase:
        """The phase of the step that follows `step` done ones."""
        return optim.phase_at(self.phases, self.epoch(step))

    def learning_rate(self, step: int) -> float:
        """The learning rate of the step that follows `step` done ones."""
        epoch, phase, base = self.epoch(step), self.phase(step), self.config.learning_rate
        if self.config.lr_schedule == "cosine":
            start = phase.start_epoch * self.steps_per_epoch
            # An epoch more than planned, after resuming with fewer, must not turn upwards again.
            progress = min(1.0, (step - start) / max(1, self.planned_steps - start))
            return optim.cosine_learning_rate(progress, base=base)
        return optim.learning_rate(
            epoch,
            phase,
            base=base,
            decay=self.config.lr_decay,
            decay_epochs=self.config.lr_decay_epochs,
        )

    def evaluates_after(self, step: int) -> bool:
        epoch, rest = divmod(step, self.steps_per_epoch)
        every = self.config.eval_every_epochs
        return rest == 0 and (epoch == self.config.epochs or bool(every and epoch % every == 0))

    def saves_after(self, step: int) -> bool:
        return step == self.last_step or step % self.config.checkpoint_every_steps == 0
