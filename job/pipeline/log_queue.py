"""Putting lines on the log queue, from any process, without ever waiting for long."""

from __future__ import annotations

import select
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from job import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from job.pipeline.channel import Sender

PATIENCE: Final = 10.0
"""Seconds to wait for room: twice what the log process waits for standard error."""

_STEP: Final = 0.1
"""Seconds between looks after the log process, where this process is the one to start it again."""


@dataclass(slots=True)
class LogQueue:
    """This process's way to the log process; `put` is what `job.logs.configure` wants.

    Attributes:
        sender: The queue.
        meanwhile: Called while the queue is full; main looks after the log process there.
        dropped: Lines given up since the last that went through.
    """

    sender: Sender
    meanwhile: Callable[[], object] = lambda: None
    dropped: int = 0
    _stuck: bool = field(default=False)

    def put(self, line: bytes) -> None:
        """Put a line on the queue; after `PATIENCE` seconds without room it is counted and dropped.

        A queue that was given up is tried, without waiting, with each further line.
        """
        if self.dropped and self._has_room(0):
            count, self.dropped = self.dropped, 0
            self._stuck = False
            self.put(logs.event("warning", "log lines dropped", dropped=count))
        waited = PATIENCE if self._stuck else 0.0
        while not self.sender.try_send(line):
            if waited >= PATIENCE:
                self._stuck = True
                self.dropped += 1
                return
            self._has_room(_STEP)
            self.meanwhile()
            waited += _STEP
        self._stuck = False

    def _has_room(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self.sender.end, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))
