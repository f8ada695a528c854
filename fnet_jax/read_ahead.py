"""Reads batches ahead in other processes, and goes on when one of these dies or hangs.

A batch is a function of its position alone, so that processes started anew repeat exactly what
the lost ones would have read.
"""

import multiprocessing
import multiprocessing.connection
import os
import queue
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import grain
import numpy as np
from absl import flags

from fnet_jax.errors import UserError

# Without a batch in between: more are no accident.
_MAX_RESTARTS = 3
# How grain calls its workers, and what it says of one that is gone.
_WORKER_NAME = "grain-process-prefetch"
_DEATH = re.compile(r"terminated unexpectedly with exit code (-?\d+)")
# Batches that each worker, and each of its reading threads, holds ready. Large images weigh
# megabytes: grain's default of 500 would fill the memory.
_AHEAD = 2


class ReadAhead(Iterator):
    """The batches at `positions`, in order.

    Args:
      load: position -> batch, a dict of arrays; picklable if there are workers.
      positions: what to load.
      num_workers: processes that read ahead; 0 reads in this process, without timeout.
      timeout: seconds without a batch after which workers are given up and started anew.
      describe: position -> what is read there, for messages.
    """

    def __init__(
        self,
        load: Callable[[int], dict[str, np.ndarray]],
        positions: range,
        *,
        num_workers: int,
        timeout: float,
        describe: Callable[[int], str],
    ):
        self._load, self._positions = load, positions
        self._num_workers, self._timeout, self._describe = num_workers, timeout, describe
        self._done = 0
        self._batches = None
        self._others: set[int] = set()  # processes that are not of this reader

    def __next__(self) -> dict[str, np.ndarray]:
        """Raises UserError if workers die or hang again and again; errors of `load` as they are."""
        restarts = 0
        while True:
            if self._batches is None:
                self._batches = self._start()
            try:
                batch = self._pull() if self._num_workers else next(self._batches)
                break
            except _LostError as error:
                self._abandon()
                where = self._describe(self._positions[self._done])
                what = f"{error}, at {where} or soon after"
                if restarts == _MAX_RESTARTS:
                    raise UserError(
                        f"{what}, {restarts + 1} times in a row; look at these images and at this "
                        "machine's memory and file system, or raise config.dataset.worker_timeout"
                    ) from error
                restarts += 1
                print(f"warning: {what}; reading starts again there", file=sys.stderr)
        self._done += 1
        # Batches of workers lie in shared memory, which is scarce in containers: a copy frees it
        # now, whatever the caller keeps.
        return {key: np.array(value) for key, value in batch.items()}

    def close(self) -> None:
        """Stops the worker processes, if any; `next` starts new ones."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None

    def _abandon(self) -> None:
        """Kills the workers; does not wait for them, they may hang where no signal reaches them."""
        for child in multiprocessing.active_children():
            if child.name.startswith(_WORKER_NAME) and child.pid not in self._others:
                child.kill()
        threading.Thread(target=self._batches.close, daemon=True).start()
        self._batches = None

    def _pull(self) -> dict[str, np.ndarray]:
        """The next batch of the workers. Raises _LostError if none comes."""
        batches, outcome = self._batches, queue.SimpleQueue()

        def pull():
            try:
                outcome.put((next(batches), None))
            except BaseException as error:
                outcome.put((None, error))

        # In a thread, because nothing interrupts reading from a worker that hangs.
        threading.Thread(target=pull, daemon=True).start()
        try:
            batch, error = outcome.get(timeout=self._timeout)
        except queue.Empty:
            raise _LostError(f"no batch was read for {self._timeout:g} s") from None
        if death := isinstance(error, RuntimeError) and _DEATH.search(str(error)):
            raise _LostError(f"a process that loads images died (exit code {death[1]})") from error
        if error is not None:
            raise error
        return batch

    def _start(self) -> Iterator[dict[str, np.ndarray]]:
        rest = self._positions[self._done :]
        source = grain.MapDataset.range(rest.start, rest.stop, rest.step)
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
        batches = source.map(self._load).to_iter_dataset(ahead)
        if self._num_workers:
            if not flags.FLAGS.is_parsed():  # grain hands its own flags to the workers.
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=_AHEAD)
            self._others = {child.pid for child in multiprocessing.active_children()}
            batches = batches.mp_prefetch(options, worker_init_fn=_begin_worker)
        return iter(batches)


class _LostError(Exception):
    """A worker died or hangs."""


def _begin_worker(index: int, count: int) -> None:
    """Ties a worker to its parent, which alone decides when it ends."""
    del index, count
    # Ctrl-C reaches every process of the terminal; the step under way needs its images still.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow():
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    # A parent that was killed stops nobody, and its workers would wait for it forever.
    threading.Thread(target=follow, daemon=True).start()
