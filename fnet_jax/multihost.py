"""Several processes as one run: joining them, and exchanging what is no array."""

import pickle
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fnet_jax.errors import UserError, reason

# After so long without a sign of life from one process the others end, too.
HEARTBEAT_TIMEOUT = 30  # seconds


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connects this process with the others of its run, before anything else uses JAX.

    Args:
      coordinator: HOST:PORT of process 0, which every process can reach. None for all three takes
        them from the cluster's environment (SLURM, Open MPI, Kubernetes, TPU pods).
      num_processes: of the run.
      process_id: of this one, from 0.

    Raises:
      UserError: the cluster says nothing, or the coordinator does not answer.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT
        )
    except (ValueError, RuntimeError) as error:
        where = f"--coordinator={coordinator}" if coordinator else "--cluster"
        raise UserError(f"{where}: the processes cannot be joined ({reason(error)})") from error


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order; anything that pickles.

    Pickles run code when they are read, but these come from processes of the same run.
    """
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(content.size, np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: content.size] = content
    contents = np.asarray(multihost_utils.process_allgather(padded))
    return [pickle.loads(bytes(c[:n])) for c, n in zip(contents, lengths, strict=True)]
