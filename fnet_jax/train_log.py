"""What a training run tells: a progress bar, metrics as JSONL and TensorBoard events.

`train_log.jsonl` holds one record per log point, `eval_log.jsonl` one per evaluation. A resumed
run first removes what was recorded after the step it resumes from, so that both files read as if
the run had never stopped.
"""

import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from fnet_jax.files import partial_of, writing
from fnet_jax.tensorboard import EventFile

TRAIN_FILE = "train_log.jsonl"
EVAL_FILE = "eval_log.jsonl"
EVENTS_FOLDER = "tensorboard"


class TrainLog:
    """The log of one run.

    Every record averages the steps since the record before it. The sums in between are part of a
    checkpoint (`window`), because a resumed run has to log what an undisturbed one would.

    Args:
      workdir: where the files go; created if missing.
      every: optimizer steps between two records.
      first_step: the step that the run starts or resumes from; later records are removed.
      last_step: the step at which training will end, for the ETA.
      images_per_step: images of all devices and accumulated micro-steps.
      window: sums taken from a checkpoint; {} at the start of a run.
      enabled: False on all processes but the first, which alone writes.

    Raises:
      UserError: here and in every method, if a file cannot be written.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        every: int,
        first_step: int,
        last_step: int,
        images_per_step: int,
        window: Mapping[str, Any],
        enabled: bool,
    ):
        self._every = every
        self._last_step = last_step
        self._images_per_step = images_per_step
        self._sums: dict[str, float] = dict(window.get("sums", {}))
        self._count: int = window.get("count", 0)
        self._skipped: int = window.get("skipped", 0)
        # Times are not part of a checkpoint: those of the stopped process would mislead.
        self._seconds = self._wait = 0.0
        self._timed = 0
        self._bar: tqdm | None = None
        self._events: EventFile | None = None
        self._folder = pathlib.Path(workdir)
        self._enabled = enabled
        if not enabled:
            return
        # The record that ended the run before was an early one if its sums are still open.
        still_open = self._count or self._skipped
        _keep_until(self._folder / TRAIN_FILE, first_step - 1 if still_open else first_step)
        _keep_until(self._folder / EVAL_FILE, first_step)
        # TensorBoard has the same rule under this name: steps from here on are void.
        purge_step = first_step + 1 if first_step else None
        with writing(self._folder / EVENTS_FOLDER):
            self._events = EventFile(self._folder / EVENTS_FOLDER, purge_step)
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=last_step, initial=first_step, desc="train", unit="step", dynamic_ncols=True
            )

    @property
    def window(self) -> dict[str, Any]:
        """What a checkpoint has to keep of this log, as JSON."""
        return {"count": self._count, "skipped": self._skipped, "sums": dict(self._sums)}

    def step(
        self,
        step: int,
        epoch: int,
        learning_rate: float,
        terms: Mapping[str, float] | None,
        seconds: float,
        wait_seconds: float,
    ) -> None:
        """Takes in one optimizer step; writes a record if one is due.

        Args:
          step: optimizer steps done, this one included.
          epoch: the epoch of this step, from 0.
          learning_rate: of this step.
          terms: loss terms, averaged over the images of the step, "total" among them; None if they
            were not finite and the step was skipped.
          seconds: wall time of the step.
          wait_seconds: the part of it spent waiting for data.
        """
        if terms is None:
            self._skipped += 1
        else:
            self._count += 1
            for name, value in terms.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
        self._timed += 1
        self._seconds += seconds
        self._wait += wait_seconds
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        due = step % self._every == 0
        if due or step == self._last_step:
            self._record(step, epoch, learning_rate)
        if due:
            self._count, self._skipped, self._sums = 0, 0, {}
            self._timed, self._seconds, self._wait = 0, 0.0, 0.0

    def evaluation(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Records the results of an evaluation after `epoch` completed epochs."""
        if not self._enabled:
            return
        metrics = {name: float(value) for name, value in metrics.items()}
        _append(self._folder / EVAL_FILE, {"step": step, "epoch": epoch} | metrics)
        self._draw("eval", metrics, step)
        listed = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.message(f"evaluation after epoch {epoch} (step {step}): {listed}")

    def message(self, text: str) -> None:
        """Shows a line without breaking the progress bar."""
        if self._enabled:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Ends the bar and closes the files."""
        if self._bar is not None:
            self._bar.close()
        if self._events is not None:
            self._events.close()

    def _draw(self, group: str, values: Mapping[str, float], step: int) -> None:
        with writing(self._folder / EVENTS_FOLDER):
            self._events.scalars({f"{group}/{name}": v for name, v in values.items()}, step)

    def _record(self, step: int, epoch: int, learning_rate: float) -> None:
        if not self._enabled:
            return
        terms = {name: total / self._count for name, total in self._sums.items()}
        per_step = self._seconds / self._timed
        speed = {
            "seconds_per_step": per_step,
            "images_per_second": self._images_per_step / max(per_step, 1e-9),
            "data_wait_share": self._wait / max(self._seconds, 1e-9),
        }
        skipped = {"skipped_steps": self._skipped} if self._skipped else {}
        record = {"step": step, "epoch": epoch, "learning_rate": learning_rate}
        record |= terms | skipped | speed
        _append(self._folder / TRAIN_FILE, record)
        self._draw("train", terms, step)
        self._draw("progress", speed | {"learning_rate": learning_rate}, step)
        if self._bar is not None:
            loss = f"loss {terms['total']:.4f}" if terms else "all steps skipped"
            self._bar.set_postfix_str(f"{loss}, {per_step:.2f} s/step")
        else:
            left = _clock(per_step * (self._last_step - step))
            listed = ", ".join(f"{name} {value:.4f}" for name, value in terms.items())
            listed += f", {self._skipped} steps skipped" if self._skipped else ""
            self.message(
                f"step {step}/{self._last_step} epoch {epoch}: {listed}, lr {learning_rate:g}, "
                f"{per_step:.3f} s/step, {speed['data_wait_share']:.0%} waiting for data, "
                f"ETA {left}"
            )


def _clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _append(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    with writing(path), path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _keep_until(path: pathlib.Path, last_step: int) -> None:
    """Removes the records of later steps, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            step = json.loads(line)["step"]
        except json.JSONDecodeError:
            continue
        if step <= last_step:
            kept.append(line + "\n")
    # Through a second file, so that a kill right here does not lose the log.
    with writing(path):
        partial_of(path).write_text("".join(kept))
        os.replace(partial_of(path), path)
