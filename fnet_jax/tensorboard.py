"""TensorBoard events without TensorFlow, written at once and in the calling thread.

`tensorboardX.SummaryWriter` writes in a thread of its own; when its disk is full, that thread ends
and whoever logs next waits for it forever.
"""

import contextlib
import pathlib
import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class EventFile:
    """A new event file in `folder`.

    Args:
      folder: of the events of all runs of a workdir; created if missing.
      purge_step: earlier files' events from this step on are void; None for none.

    Raises:
      OSError: here and in `scalars`, if the file cannot be written.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None):
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
        self._writer.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes values by their tags."""
        for tag, value in values.items():
            self._write(Event(step=step, summary=scalar(tag, value)))
        self._writer.flush()

    def close(self) -> None:
        """Releases the file, in which all events are already."""
        with contextlib.suppress(OSError):  # What `scalars` could not write, once more.
            self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
