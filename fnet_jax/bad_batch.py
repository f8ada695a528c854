"""The batch whose losses were not finite: kept on disk, and run again by `--mode replay`."""

import json
import math
import os
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import jax
import numpy as np

from fnet_jax.datasets.json_files import fields
from fnet_jax.errors import UserError, reason
from fnet_jax.files import partial_of, writing
from fnet_jax.train_step import Batch, PendingStep

FOLDER = "bad_batches"
_MAX_KEPT = 20  # a few megabytes each
_MAX_BYTES = 2**30  # of all arrays of a file
_FACTS = "facts"
# What zipfile and NumPy raise for a damaged file depends on where the damage is.
_DAMAGED = (
    OSError, ValueError, LookupError, TypeError, RuntimeError, EOFError, SyntaxError,
    zipfile.BadZipFile, zlib.error
)  # fmt: skip


class BadBatch(NamedTuple):
    """What `write` wrote.

    Attributes:
      step: optimizer steps done with this one.
      epoch: from 0.
      cause: one line, as the run said it.
      process_index: of the process whose images these are.
      device_count: of all processes together.
      batches: of each micro-step, with a leading axis of that process's devices.
    """

    step: int
    epoch: int
    cause: str
    process_index: int
    device_count: int
    batches: list[Batch]

    def places(self) -> list[tuple[Batch, int]]:
        """(example, place within the step) of each image; places decide random keys."""
        found = []
        for number, batch in enumerate(self.batches):
            local = len(batch["image_index"])
            first = number * self.device_count + self.process_index * local
            for row in range(local):
                found.append(({k: v[row] for k, v in batch.items()}, first + row))
        return found


def write(workdir: str | os.PathLike, pending: PendingStep, cause: str) -> pathlib.Path:
    """Writes this process's images of a step; returns the file.

    Beyond the first few of a run nothing is written: what matters is how it began.

    Raises:
      UserError: the file cannot be written.
    """
    folder = pathlib.Path(workdir) / FOLDER
    process = jax.process_index()
    path = folder / f"step_{pending.step:08d}_process_{process}.npz"
    if len(list(folder.glob("*.npz"))) >= _MAX_KEPT and not path.exists():
        return path.with_name("(no more are kept)")
    facts = {"step": pending.step, "epoch": pending.epoch, "cause": cause}
    facts |= {"process_index": process, "device_count": jax.device_count()}
    arrays = {
        f"{number}/{name}": array
        for number, batch in enumerate(pending.batches)
        for name, array in batch.items()
    }
    partial = partial_of(path)
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays, **{_FACTS: np.array(json.dumps(facts))})
        os.replace(partial, path)
    return path


def newest(workdir: str | os.PathLike) -> pathlib.Path:
    """The file of the last step that `write` wrote. Raises UserError if there is none."""
    files = sorted((pathlib.Path(workdir) / FOLDER).glob("step_*.npz"))
    if not files:
        raise UserError(
            f"--workdir: {workdir} has no {FOLDER}/: no step of this run had losses that were not "
            "finite"
        )
    return files[-1]


def read(path: str | os.PathLike) -> BadBatch:
    """Reads a file of `write`; no pickles. Raises UserError if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive)
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
        facts = json.loads(str(arrays.pop(_FACTS)))
        kinds = {name: kind for name, kind in BadBatch.__annotations__.items() if name != "batches"}
        facts = fields(facts, **kinds)
        batches: dict[int, Batch] = {}
        for key, array in arrays.items():
            number, name = key.split("/")
            batches.setdefault(int(number), {})[name] = array
        bad = BadBatch(*facts, [batches[number] for number in sorted(batches)])
        bad.places()  # which fails if the arrays are not all of the same images
        return bad
    except _DAMAGED as error:
        raise UserError(f"{path} is no batch of a training run ({reason(error)})") from error


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Raises ValueError if a file's arrays are larger than what is stored, or all are too large."""
    if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
        raise ValueError(f"it would have more than {_MAX_BYTES} bytes")
    for entry in archive.infolist():
        with archive.open(entry) as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError(f"{entry.filename} is of another version")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if math.prod(shape) * dtype.itemsize > entry.file_size:
            raise ValueError(f"{entry.filename} has another size than it says")
