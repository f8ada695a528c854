"""Checkpoints of a training run: the latest and the best one, written atomically by orbax.

A run keeps two folders, each with one committed step (a number) inside:

    WORKDIR/checkpoints/latest/1200/{params,optimizer,meta}
    WORKDIR/checkpoints/best/900/...

Orbax writes a step under a temporary name and renames it when it is complete; only then is the
step before it removed. A kill at any moment therefore leaves a whole checkpoint behind.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.experimental import multihost_utils

from fnet_jax.errors import UserError

LATEST = "latest"
BEST = "best"
_FOLDER = "checkpoints"
_EVALUATED = "evaluated_step"
# What a model is tied to; weights for other classes or anchors would be silently wrong.
_TIED = ("object_names", "predicate_names", "anchors", "network")
_MAX_LISTED = 12


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on exactly, or a model to be used.

    Attributes:
      step: optimizer steps done.
      epoch: epochs completed.
      params: parameter tree of NumPy arrays.
      optimizer: leaves of the optimizer state by path, see `flatten_state`.
      data_states: position of the data iterator, one JSON object per process.
      stage: the training stage it belongs to, a key of `optim.STAGES`.
      best_metric: the best value so far of `best_metric_name`; None before the first evaluation.
      best_metric_name: the metric that decides which checkpoint is the best one.
      log_window: sums that the training log has gathered since its last record.
      metadata: config, object_names, predicate_names, anchors; anything JSON can hold.
    """

    step: int
    epoch: int
    params: dict[str, Any]
    optimizer: dict[str, np.ndarray]
    data_states: list[dict[str, Any]]
    stage: str
    best_metric: float | None = None
    best_metric_name: str = ""
    log_window: dict[str, Any] = dataclasses.field(default_factory=dict)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


class Checkpoints:
    """The two checkpoint folders of a workdir, open for writing. Safe with several processes."""

    def __init__(self, workdir: str | pathlib.Path):
        root = pathlib.Path(workdir).absolute() / _FOLDER
        # Synchronous: a returned save is on disk, which is what the caller goes on to rely on.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        try:
            self._managers = {
                kind: ocp.CheckpointManager(root / kind, options=options) for kind in (LATEST, BEST)
            }
        except OSError as error:
            raise UserError(
                f"--workdir: cannot write checkpoints to {root} ({error}); choose another folder"
            ) from error

    def save(self, kind: str, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint as `LATEST` or `BEST`, replacing the one before it."""
        manager = self._managers[kind]
        meta = {
            field.name: getattr(checkpoint, field.name)
            for field in dataclasses.fields(checkpoint)
            if field.name not in ("params", "optimizer")
        }
        saved = manager.save(
            checkpoint.step,
            args=ocp.args.Composite(
                params=ocp.args.PyTreeSave(checkpoint.params),
                optimizer=ocp.args.PyTreeSave(checkpoint.optimizer),
                meta=ocp.args.JsonSave(meta),
            ),
        )
        if not saved:  # Orbax passes over steps that are not newer than the newest it has.
            raise ValueError(
                f"step {checkpoint.step} does not follow step {manager.latest_step()} ({kind})"
            )

    def step(self, kind: str) -> int | None:
        """Step of the newest committed checkpoint of this kind, if there is one."""
        return self._managers[kind].latest_step()

    def close(self) -> None:
        """Releases the folders."""
        for manager in self._managers.values():
            manager.close()


def restore(
    path: str | pathlib.Path,
    template: Mapping[str, Any] | None = None,
    *,
    prefer: str = LATEST,
    with_optimizer: bool = True,
) -> Checkpoint:
    """Reads a checkpoint.

    Args:
      path: a workdir, its `latest` or `best` folder, or one step inside these.
      template: parameter tree (anything with shapes) that the checkpoint has to fit.
      prefer: which of `LATEST` and `BEST` a workdir stands for; the other is taken if it is alone.
      with_optimizer: False leaves `optimizer`, most of a checkpoint's bytes, unread and empty.

    Raises:
      UserError: if there is no checkpoint, it cannot be read, or it does not fit the template.
    """
    step_dir = _find_step(pathlib.Path(path).absolute(), prefer)
    if step_dir is None:
        raise UserError(
            f"No checkpoint at {path}; give a workdir with a '{_FOLDER}' folder, its "
            f"'{LATEST}' or '{BEST}' folder, or a step inside"
        )
    items = _read(step_dir, ("params", "meta", *(["optimizer"] if with_optimizer else [])))
    try:
        checkpoint = Checkpoint(
            params=items["params"], optimizer=items.get("optimizer", {}), **items["meta"]
        )
    except TypeError as error:
        raise UserError(
            f"The checkpoint {step_dir} was written by another version of this project ({error}); "
            "use that version, or give another checkpoint"
        ) from error
    if template is not None:
        check_fits(checkpoint.params, template, step_dir)
    return checkpoint


def restore_latest(
    workdir: str | pathlib.Path, template: Mapping[str, Any] | None = None
) -> Checkpoint | None:
    """The latest checkpoint of a workdir, or None if it has none yet. Raises as `restore` does."""
    folder = pathlib.Path(workdir).absolute() / _FOLDER / LATEST
    return None if _find_step(folder, LATEST) is None else restore(folder, template)


def has_latest(workdir: str | pathlib.Path) -> bool:
    """Whether a workdir holds a run that can be gone on with."""
    return _find_step(pathlib.Path(workdir).absolute() / _FOLDER / LATEST, LATEST) is not None


def check_not_orphaned(workdir: str | pathlib.Path) -> None:
    """Raises UserError if a workdir has a best checkpoint without the run that it belongs to."""
    folder = pathlib.Path(workdir).absolute() / _FOLDER
    if _find_step(folder / BEST, BEST) is not None and not has_latest(workdir):
        raise UserError(
            f"{folder / BEST} is left of a run whose latest checkpoint is gone; move or delete "
            f"{folder}, or choose another --workdir"
        )


def mark_evaluated(workdir: str | pathlib.Path, step: int) -> None:
    """Notes that the evaluation that is due after `step` took place."""
    if jax.process_index() == 0:
        path = pathlib.Path(workdir) / _FOLDER / _EVALUATED
        partial = path.with_name(path.name + ".partial")
        partial.write_text(f"{step}\n")
        partial.replace(path)


def last_evaluated(workdir: str | pathlib.Path) -> int | None:
    """The step of the last evaluation that took place, None if there was none."""
    try:
        return int((pathlib.Path(workdir) / _FOLDER / _EVALUATED).read_text())
    except (OSError, ValueError):
        return None


def restore_best_metric(workdir: str | pathlib.Path, name: str) -> float | None:
    """The value of the named metric in a workdir's best checkpoint, if that was chosen by it."""
    step_dir = _find_step(pathlib.Path(workdir).absolute() / _FOLDER / BEST, BEST)
    if step_dir is None:
        return None
    meta = _read(step_dir, ("meta",))["meta"]
    return meta.get("best_metric") if meta.get("best_metric_name") == name else None


def check_fits(
    params: Mapping[str, Any], template: Mapping[str, Any], path: str | pathlib.Path
) -> None:
    """Raises UserError listing the keys and shapes in which `params` differ from `template`."""
    found = {k: np.shape(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}
    wanted = {k: tuple(v.shape) for k, v in traverse_util.flatten_dict(template, sep="/").items()}
    differences = [f"{k} is missing" for k in sorted(wanted.keys() - found.keys())]
    differences += [f"{k} is unknown" for k in sorted(found.keys() - wanted.keys())]
    differences += [
        f"{k} is {found[k]} instead of {wanted[k]}"
        for k in sorted(found.keys() & wanted.keys())
        if found[k] != wanted[k]
    ]
    if differences:
        more = len(differences) - _MAX_LISTED
        listed = "; ".join(differences[:_MAX_LISTED]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(
            f"The checkpoint {path} does not fit the config: {listed}. Use the config it was "
            "trained with, or another --workdir"
        )


def check_metadata(
    checkpoint: Checkpoint, metadata: Mapping[str, Any], path: str | pathlib.Path
) -> None:
    """Raises UserError if classes, anchors or network differ from those of the checkpoint."""
    current = json.loads(json.dumps(dict(metadata)))
    for key in _TIED:
        saved = checkpoint.metadata.get(key)
        if saved is not None and key in current and saved != current[key]:
            raise UserError(
                f"The checkpoint at {path} was trained with other {key}; use the dataset and the "
                "anchors it was trained with, or another --workdir"
            )


def flatten_state(state: Any) -> dict[str, np.ndarray]:
    """Optimizer state as a flat dict of host arrays, readable without optax's own classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def unflatten_state(flat: Mapping[str, np.ndarray], template: Any) -> Any | None:
    """The inverse of `flatten_state`; None if the leaves are not those of the template."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    wanted = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    if flat.keys() != wanted.keys():
        return None
    if any(np.shape(flat[key]) != np.shape(leaf) for key, leaf in wanted.items()):
        return None
    return jax.tree_util.tree_unflatten(structure, [flat[key] for key in wanted])


def gather_states(state: dict[str, Any]) -> list[dict[str, Any]]:
    """This process's JSON object and those of all others, in the order of processes."""
    if jax.process_count() == 1:
        return [state]
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(text.size, np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: text.size] = text
    texts = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(bytes(t[:n])) for t, n in zip(texts, lengths, strict=True)]


def _find_step(path: pathlib.Path, prefer: str) -> pathlib.Path | None:
    """The step folder that a path stands for. Unfinished steps have other names than numbers."""
    if (path / "params").is_dir() and (path / "meta").is_dir():
        return path
    other = BEST if prefer == LATEST else LATEST
    for folder in (
        path,
        path / prefer,
        path / _FOLDER / prefer,
        path / other,
        path / _FOLDER / other,
    ):
        steps = [d for d in folder.glob("*") if d.name.isdigit() and d.is_dir()]
        if steps:
            return max(steps, key=lambda d: int(d.name))
    return None


def _read(step_dir: pathlib.Path, names: tuple[str, ...]) -> Any:
    """The named items of a step folder. Arrays were saved from the host and come back as NumPy."""
    wanted = {
        name: ocp.args.JsonRestore() if name == "meta" else ocp.args.PyTreeRestore()
        for name in names
    }
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    try:
        return checkpointer.restore(step_dir, args=ocp.args.Composite(**wanted))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(
            f"The checkpoint {step_dir} cannot be read ({reason}); give another one, or "
            "another --workdir"
        ) from error
    finally:
        checkpointer.close()
