"""Main's view of the workers: start them, talk to them, learn what a dead one had in hand."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from job.pipeline import channel
from job.pipeline.channel import FRAGMENT
from job.pipeline.messages import Stop, pack, unpack
from job.pipeline.runtime import Runtime
from job.pipeline.slots import NOTHING, PROCESSING
from job.pipeline.worker import WorkerArguments

TARGET: Final = "job.pipeline.worker:main"

BACKOFF: Final = 0.05
"""Seconds before a worker that died before it was ready is started again; doubled each time."""

LONGEST_BACKOFF: Final = 5.0


@dataclass(slots=True)
class Worker:
    """A worker's place. Processes come and go in it; at most one at a time.

    Attributes:
        number: Which worker it is.
        pid: The process, or None between two.
        jobs: Main's end of its job queue.
        ready: Whether it has set its processor up.
        killed_for: Why main killed it, if it did.
        false_starts: Processes in a row that died before they were ready.
        start_at: Not started again before this, in seconds of the monotonic clock.
    """

    number: int
    pid: int | None = None
    jobs: socket.socket | None = None
    ready: bool = False
    killed_for: str | None = None
    false_starts: int = 0
    start_at: float = 0.0

    @property
    def role(self) -> str:
        """Its name in the logs."""
        return f"worker-{self.number}"

    def send(self, message: object) -> None:
        """Put a message on its job queue; nothing happens if it has just died."""
        if self.jobs is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.jobs.send(pack(message))

    def messages(self) -> Iterator[Any]:
        """Yield what it has said and nobody has read; never waits.

        What a dead process said is still there, each message whole.
        """
        while self.jobs is not None:
            try:
                packet = self.jobs.recv(FRAGMENT, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionResetError):
                return
            if not packet:
                return
            yield unpack(packet)


class Workers:
    """All workers' places."""

    def __init__(
        self,
        runtime: Runtime,
        count: int,
        arguments: Callable[[int], tuple[WorkerArguments, list[int]]],
    ) -> None:
        """Make the places; ``arguments`` gives what a worker is told, and descriptors beside its job queue."""
        self._runtime = runtime
        self._arguments = arguments
        self._places = [Worker(number) for number in range(count)]
        self.any_was_ready = False

    def __iter__(self) -> Iterator[Worker]:
        """Yield the places."""
        return iter(self._places)

    def by_pid(self, pid: int) -> Worker | None:
        """Return the place of a process."""
        return next((worker for worker in self._places if worker.pid == pid), None)

    @property
    def alive(self) -> list[Worker]:
        """The places that have a process."""
        return [worker for worker in self._places if worker.pid is not None]

    def start_missing(self) -> bool:
        """Start a process in every place that has none and is due; say whether one was started."""
        now = time.monotonic()
        due = [worker for worker in self._places if worker.pid is None and worker.start_at <= now]
        for worker in due:
            self._start(worker)
        return bool(due)

    def next_start(self) -> float | None:
        """Return when the next place is due, in seconds of the monotonic clock, or None."""
        return min((worker.start_at for worker in self._places if worker.pid is None), default=None)

    def _start(self, worker: Worker) -> None:
        arguments, descriptors = self._arguments(worker.number)
        worker.jobs, theirs = channel.pair()
        worker.ready = False
        worker.killed_for = None
        with theirs:
            worker.pid = self._runtime.spawn(worker.role, TARGET, arguments, [theirs.fileno(), *descriptors])

    def was_ready(self, worker: Worker) -> None:
        """Take note that a worker has set its processor up."""
        worker.ready = self.any_was_ready = True
        worker.false_starts = 0

    def bury(self, worker: Worker) -> int | None:
        """Clear the place of a dead process; return the ``file_index`` it had in hand, if any.

        What the processor has started in its process group is killed with it.
        """
        slot = self._runtime.slots.read(worker.number)
        if worker.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.pid, signal.SIGKILL)
        if worker.jobs is not None:
            worker.jobs.close()
        if not worker.ready:
            worker.start_at = time.monotonic() + min(BACKOFF * 2**worker.false_starts, LONGEST_BACKOFF)
            worker.false_starts += 1
        worker.pid = worker.jobs = None
        worker.ready = False
        self._runtime.end_line(worker.role)
        self._runtime.slots.clear(worker.number, 0)
        return None if slot.index == NOTHING else slot.index

    def kill(self, worker: Worker, reason: str) -> None:
        """Kill a worker and all that its processor has started; its end is told like any other."""
        worker.killed_for = reason
        if worker.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.pid, signal.SIGKILL)

    def overdue(self, timeout: float) -> Iterator[tuple[Worker, int]]:
        """Yield the workers that have had a file in hand for longer than ``timeout`` seconds, and the file."""
        now = time.monotonic_ns()
        for worker in self._places:
            slot = self._runtime.slots.read(worker.number)
            if (
                worker.ready
                and not worker.killed_for
                and slot.phase == PROCESSING
                and slot.index != NOTHING
                and now - slot.since > timeout * 1e9
            ):
                yield worker, slot.index

    def stop(self) -> None:
        """Tell every worker that nothing more will come."""
        for worker in self._places:
            worker.send(Stop())
