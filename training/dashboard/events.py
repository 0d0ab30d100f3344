"""TensorBoard's event file."""

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

FLUSH_SECONDS = 5  # so that TensorBoard can be watched
NAME = "events.out.tfevents."


class EventFile:
    """A new event file, the last of `run_dir` in the order of names, in which TensorBoard reads them.

    Where the clock has gone back since the last one was written, times go on from there. With `start_step` readers drop
    what earlier files have from this step on. All is written by the caller: tensorboard's own writer has a thread for
    it, in which an error (a full disk) stays unseen until later.
    """

    def __init__(self, run_dir: Path, start_step: int | None = None) -> None:
        earlier = list(run_dir.glob(f"{NAME}*"))
        seconds = (path.name.removeprefix(NAME).split(".")[0] for path in earlier)
        named = [int(second) + 1 for second in seconds if second.isdigit()]
        self.begun = max([time.time(), *named, *(path.stat().st_mtime for path in earlier)])
        self.started = self.flushed = time.monotonic()
        path = run_dir / f"{NAME}{int(self.begun):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self.records = RecordWriter(path.open("xb"))
        self._add(Event(file_version="brain.Event:2"))
        if start_step is not None:
            self._add(Event(step=start_step, session_log=SessionLog(status=SessionLog.START)))
        self.flush()

    def add(self, summary: Summary, step: int) -> None:
        self._add(Event(step=step, summary=summary))
        if time.monotonic() > self.flushed + FLUSH_SECONDS:
            self.flush()

    def _add(self, event: Event) -> None:
        event.wall_time = self.begun + time.monotonic() - self.started
        self.records.write(event.SerializeToString())

    def flush(self) -> None:
        self.records.flush()
        self.flushed = time.monotonic()

    def close(self) -> None:
        self.records.close()
