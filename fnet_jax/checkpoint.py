"""Checkpoints of a training run: the latest and the best ones, written atomically by orbax.

A run keeps two folders with committed steps (numbers) inside, the newest few of `latest` and the
newest of `best`:

    WORKDIR/checkpoints/latest/1200/{params,optimizer,meta}
    WORKDIR/checkpoints/latest/1000/...
    WORKDIR/checkpoints/best/900/...

Orbax writes a step in the background, under a temporary name, and renames it when it is complete;
only then is an old step removed. A kill at any moment therefore leaves a whole checkpoint behind.
Each holds a digest of its content: one that a disk has damaged is noticed, and a run goes on from
the one before it.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from fnet_jax.errors import UserError, listed, reason, shown
from fnet_jax.files import partial_of, writing

LATEST = "latest"
BEST = "best"
_FOLDER = "checkpoints"
_EVALUATED = "evaluated_step"
# What a model is tied to; weights for other classes or anchors would be silently wrong.
_TIED = ("object_names", "predicate_names", "anchors", "network")
# Where TensorStore quotes the operating system.
_SYSTEM_REASON = re.compile(r"([A-Z][a-zA-Z ]+) \[os_error_code")
_DIGEST = "digest"  # entry of a step's `meta`
# Of all arrays of an item. Tensorstore ends the process where memory does not suffice.
_MAX_BYTES = 2**33
# Where a damaged step goes: not a number, so that nobody takes it for a checkpoint.
_DAMAGED_SUFFIX = ".damaged"


class DamagedError(UserError):
    """A committed checkpoint that is not as it was written."""


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


# The fields that a step's `meta` holds, and their types in JSON.
_META = {
    "step": int,
    "epoch": int,
    "data_states": list,
    "stage": str,
    "best_metric": float | int | None,
    "best_metric_name": str,
    "log_window": dict,
    "metadata": dict,
}


class Checkpoints:
    """The two checkpoint folders of a workdir, open for writing. Safe with several processes.

    Args:
      workdir: of the run.
      keep: how many of the newest `LATEST` checkpoints stay; of `BEST` one does.
    """

    def __init__(self, workdir: str | pathlib.Path, keep: int = 2):
        root = self._root = pathlib.Path(workdir).absolute() / _FOLDER
        try:
            self._managers = {
                kind: ocp.CheckpointManager(
                    root / kind,
                    options=ocp.CheckpointManagerOptions(
                        max_to_keep=count, cleanup_tmp_directories=True
                    ),
                )
                for kind, count in ((LATEST, keep), (BEST, 1))
            }
        except OSError as error:
            raise UserError(
                f"--workdir: cannot write checkpoints to {root} ({error}); choose another folder"
            ) from error

    def save(self, kind: str, checkpoint: Checkpoint) -> None:
        """Begins to write a checkpoint as `LATEST` or `BEST`; `wait` and `close` wait for it.

        A save waits for the one before it, so at most one of a kind is under way.

        Raises:
          UserError: this save, or the one before it, failed; what was committed before stays.
        """
        self.wait(kind)
        manager = self._managers[kind]
        meta = {
            field.name: getattr(checkpoint, field.name)
            for field in dataclasses.fields(checkpoint)
            if field.name not in ("params", "optimizer")
        }
        # Copies: on a CPU these may be the very arrays that the next step overwrites.
        params, optimizer = jax.tree.map(np.array, (checkpoint.params, checkpoint.optimizer))
        meta[_DIGEST] = {
            "params": _digest(params),
            "optimizer": _digest(optimizer),
            "meta": _digest_of_json(meta),
        }
        self._check_room(params, optimizer)
        try:
            saved = manager.save(
                checkpoint.step,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(params),
                    optimizer=ocp.args.PyTreeSave(optimizer),
                    meta=ocp.args.JsonSave(meta),
                ),
            )
        except (OSError, RuntimeError) as error:
            raise self._failed(error) from error
        if not saved:  # Orbax passes over steps that are not newer than the newest it has.
            raise ValueError(
                f"step {checkpoint.step} does not follow step {manager.latest_step()} ({kind})"
            )

    def step(self, kind: str) -> int | None:
        """Step of the newest checkpoint of this kind, committed or under way, if there is one."""
        return self._managers[kind].latest_step()

    def wait(self, kind: str) -> None:
        """Returns when the last save of this kind is on disk. Raises UserError if it failed."""
        try:
            self._managers[kind].wait_until_finished()
            # What a background thread could not do.
            self._managers[kind].check_for_errors()
        except (OSError, RuntimeError, ValueError) as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits for saves under way and releases the folders. Raises UserError if one failed."""
        for kind, manager in self._managers.items():
            self.wait(kind)
            manager.close()

    def _check_room(self, *trees: Any) -> None:
        """Orbax would notice a full disk, too, but in the middle and at great length."""
        needed = sum(array.nbytes for array in jax.tree.leaves(trees))
        free = shutil.disk_usage(self._root).free
        if free < needed:
            raise UserError(
                f"--workdir: a checkpoint needs {needed / 1e6:.0f} MB, and {self._root} has "
                f"{free / 1e6:.0f} MB left; those before it are kept. Make room, and start the "
                "same command again"
            )

    def _failed(self, error: Exception) -> UserError:
        text = " ".join(str(error).split())
        known = _SYSTEM_REASON.search(text)
        why = known[1] if known else reason(error)
        return UserError(
            f"--workdir: a checkpoint cannot be written to {self._root} ({why}); those before "
            "it are kept. Make room, and start the same command again"
        )


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
      template: parameter tree (arrays or `jax.ShapeDtypeStruct`s) that the checkpoint has to fit,
        which is seen before any array is read.
      prefer: which of `LATEST` and `BEST` a workdir stands for; the other is taken if it is alone.
      with_optimizer: False leaves `optimizer`, most of a checkpoint's bytes, unread and empty.

    If the newest of several is damaged, it is named on stderr and the one before it is taken.

    Raises:
      UserError: if there is no checkpoint, none can be read, or it does not fit the template.
    """
    step_dirs = _find_steps(pathlib.Path(path).absolute(), prefer)
    if not step_dirs:
        raise UserError(
            f"No checkpoint at {path}; give a workdir with a '{_FOLDER}' folder, its "
            f"'{LATEST}' or '{BEST}' folder, or a step inside"
        )
    while True:
        step_dir = step_dirs.pop(0)
        try:
            return _read_step(step_dir, template, with_optimizer)
        except DamagedError as error:
            if not step_dirs:
                raise
            print(f"warning: {error}; taking {step_dirs[0]}", file=sys.stderr)


def restore_latest(
    workdir: str | pathlib.Path, template: Mapping[str, Any] | None = None
) -> Checkpoint | None:
    """The latest checkpoint of a workdir, or None if it has none yet. Raises as `restore` does."""
    folder = pathlib.Path(workdir).absolute() / _FOLDER / LATEST
    return restore(folder, template) if _find_steps(folder, LATEST) else None


def set_damaged_aside(workdir: str | pathlib.Path, step: int) -> None:
    """Renames the steps after `step`, which `restore_latest` passed over, so that they come again.

    Orbax writes no step that is not newer than the newest. One process may do this, before any
    opens `Checkpoints`.
    """
    folder = pathlib.Path(workdir).absolute() / _FOLDER / LATEST
    for step_dir in _find_steps(folder, LATEST):
        if int(step_dir.name) > step:
            os.replace(step_dir, step_dir.with_name(step_dir.name + _DAMAGED_SUFFIX))


def has_latest(workdir: str | pathlib.Path) -> bool:
    """Whether a workdir holds a run that can be gone on with."""
    return bool(_find_steps(pathlib.Path(workdir).absolute() / _FOLDER / LATEST, LATEST))


def check_not_orphaned(workdir: str | pathlib.Path) -> None:
    """Raises UserError if a workdir has a best checkpoint without the run that it belongs to."""
    folder = pathlib.Path(workdir).absolute() / _FOLDER
    if _find_steps(folder / BEST, BEST) and not has_latest(workdir):
        raise UserError(
            f"{folder / BEST} is left of a run whose latest checkpoint is gone; move or delete "
            f"{folder}, or choose another --workdir"
        )


def mark_evaluated(workdir: str | pathlib.Path, step: int) -> None:
    """Notes that the evaluation that is due after `step` took place."""
    if jax.process_index() == 0:
        path = pathlib.Path(workdir) / _FOLDER / _EVALUATED
        partial = partial_of(path)
        with writing(path):
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
    step_dirs = _find_steps(pathlib.Path(workdir).absolute() / _FOLDER / BEST, BEST)
    if not step_dirs:
        return None
    meta, _ = _read_meta(step_dirs[0])
    return meta["best_metric"] if meta["best_metric_name"] == name else None


def check_fits(
    params: Mapping[str, Any], template: Mapping[str, Any], path: str | pathlib.Path
) -> None:
    """Raises UserError listing what differs from `template` in keys, shapes or types.

    `params`: of arrays, or of anything else with shapes and dtypes.
    """
    found, wanted = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, template))
    differences = [f"{k} is missing" for k in sorted(wanted.keys() - found.keys())]
    differences += [f"{shown(k)} is unknown" for k in sorted(found.keys() - wanted.keys())]
    for k in sorted(found.keys() & wanted.keys()):
        if tuple(found[k].shape) != tuple(wanted[k].shape):
            differences.append(
                f"{k} is {tuple(found[k].shape)} instead of {tuple(wanted[k].shape)}"
            )
        elif found[k].dtype != wanted[k].dtype:
            differences.append(f"{k} holds {found[k].dtype} instead of {wanted[k].dtype}")
    if differences:
        raise UserError(
            f"The checkpoint {path} does not fit the config: {listed(differences)}. Use the config "
            "it was trained with, or another --workdir"
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


def _digest(arrays: Any) -> str:
    """Of names, types, shapes and bytes of a tree of arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _digest_of_json(value: Any) -> str:
    """Of what comes back when the value is written as JSON."""
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _find_steps(path: pathlib.Path, prefer: str) -> list[pathlib.Path]:
    """The step folders that a path stands for, the newest first.

    Unfinished steps have other names than numbers.
    """
    if (path / "params").is_dir() and (path / "meta").is_dir():
        return [path]
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
            return sorted(steps, key=lambda d: int(d.name), reverse=True)
    return []


def _read_step(
    step_dir: pathlib.Path, template: Mapping[str, Any] | None, with_optimizer: bool
) -> Checkpoint:
    """Raises DamagedError if it is not as it was written, UserError if it does not fit."""
    meta, digests = _read_meta(step_dir)
    items = {"params": _read_arrays(step_dir, "params", template), "optimizer": {}}
    if with_optimizer:
        items["optimizer"] = _read_arrays(step_dir, "optimizer")
    for name in items if with_optimizer else ("params",):
        if _digest(items[name]) != digests.get(name):
            raise _changed(step_dir, name)
    return Checkpoint(**items, **meta)


def _read_meta(step_dir: pathlib.Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A checkpoint's plain fields, and the digests by item."""
    try:
        meta = json.loads((step_dir / "meta" / "metadata").read_bytes())
        digests = dict(meta.pop(_DIGEST))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(step_dir, error) from error
    if digests.get("meta") != _digest_of_json(meta):
        raise _changed(step_dir, "fields")
    for field, kinds in _META.items():
        if not isinstance(meta.get(field), kinds):
            raise UserError(
                f"The checkpoint {step_dir} was written by another version of this project "
                f"({field} is {shown(repr(meta.get(field)))}); use that version, or give another "
                "checkpoint"
            )
    return {field: meta[field] for field in _META}, digests


def _read_arrays(
    step_dir: pathlib.Path, name: str, template: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """An item as NumPy arrays, once what it says of them fits the template and the memory."""
    handler = ocp.PyTreeCheckpointHandler()
    try:
        # Opens every array, and reads none.
        stored = handler.metadata(step_dir / name)
        _check_sizes(stored)
        if template is not None:
            check_fits(stored.tree, template, step_dir)
        wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored.tree)
        return handler.restore(step_dir / name, args=ocp.args.PyTreeRestore(restore_args=wanted))
    except UserError:
        raise
    except Exception as error:  # Orbax raises whatever its parts do, failed assertions included.
        raise _unreadable(step_dir, error) from error
    finally:
        handler.close()


def _check_sizes(stored: Any) -> None:
    """Raises ValueError for what no checkpoint has. `stored` is orbax's metadata of an item."""
    leaves = jax.tree.leaves(stored.tree)
    if stored.use_zarr3 or not all(isinstance(leaf, ocp.metadata.ArrayMetadata) for leaf in leaves):
        raise ValueError("it holds more than arrays")
    size = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
    if size > _MAX_BYTES:
        raise ValueError(f"its arrays have {size} bytes")
    for leaf in leaves:
        # Chunks are read as a whole.
        if math.prod(leaf.storage.chunk_shape) > max(1, math.prod(leaf.shape)):
            raise ValueError(f"an array {leaf.shape} is in chunks of {leaf.storage.chunk_shape}")


def _unreadable(step_dir: pathlib.Path, error: Exception) -> DamagedError:
    return DamagedError(
        f"The checkpoint {step_dir} cannot be read ({reason(error)}); give another one, or another "
        "--workdir"
    )


def _changed(step_dir: pathlib.Path, name: str) -> DamagedError:
    return DamagedError(
        f"The checkpoint {step_dir} is damaged (its {name} are not as they were written)"
    )
