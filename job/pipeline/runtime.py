"""What every command has that runs user code or has children: a fork server and a log process.

::

    main ──────────────▶ log queue ──▶ log process ──▶ standard error
    every child ──────▶      "              ▲
    their fd 1 and 2 ──▶ a pipe each ───────┘

Main keeps both ends of the log queue and of all pipes until the end: when the log process dies, nobody who
writes notices, and the next one finds what was handed over.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from job import logs
from job.errors import InvariantError
from job.pipeline import channel
from job.pipeline.channel import MAIN, Sender
from job.pipeline.forkserver import Exit, ForkServer
from job.pipeline.log import LogArguments
from job.pipeline.log_queue import LogQueue
from job.pipeline.messages import END_OF_LOG, LOG_CONTEXT
from job.pipeline.slots import Slots
from job.render import choose

_LOG_END: Final = 30.0
"""Seconds the log process has at the end for what is left; it drops lines after 5 s of a stuck reader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """How logs look and what is logged.

    Attributes:
        level: The least level, one of `job.logs.LEVELS`.
        format: One of `job.render.FORMATS`.
        capture: Whether main's own descriptors 1 and 2 are logged as well; a program of its own does that,
            a guest in somebody's notebook does not.
    """

    level: str = "info"
    format: str = "auto"
    capture: bool = False


class Runtime:
    """The fork server, the log process and the shared memory of one command.

    A context manager: at its end the log is written to its last line, and both have ended.

    Attributes:
        slots: One row a worker, then the result process's and main's.
        stdout: Where a command's own output goes: main's standard output as it was before the capture.
    """

    def __init__(self, settings: LogSettings, workers: int = 0) -> None:
        """Start both, for a command with so many workers (none: no pipeline)."""
        self._settings = settings
        roles = [f"worker-{number}" for number in range(workers)] + ["result", "main"]
        self._roles = tuple(roles)
        self.slots = Slots.create(len(roles))
        self.slots.clear(len(roles) - 1, os.getpid())
        self.log_queue_in, self._log_queue_out = channel.pair()
        self._pipes = [os.pipe2(os.O_CLOEXEC) for _ in roles]
        self._standard_error = os.dup(2)
        self.stdout = os.dup(1)
        self._captured = False
        self._log_process: int | None = None
        self._exits: list[Exit] = []
        self._log = LogQueue(Sender(self.log_queue_in, MAIN, os.getpid()), self.look_after_log)
        self._server = ForkServer(self.stdio_of("main"))

    def __enter__(self) -> Self:
        """Begin to log."""
        logs.configure(self._log.put, level=self._settings.level, process="main")
        if self._settings.capture:
            for descriptor in (1, 2):
                os.dup2(self.stdio_of("main"), descriptor)
            self._captured = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the log to its end, end the children, give the descriptors back."""
        try:
            self._end_log()
        finally:
            if self._captured:
                sys.stdout.flush()
                sys.stderr.flush()
                os.dup2(self.stdout, 1)
                os.dup2(self._standard_error, 2)
            self._server.close()
            self.slots.close()
            for descriptor in (*sum(self._pipes, ()), self.stdout, self._standard_error):
                os.close(descriptor)
            self.log_queue_in.close()
            self._log_queue_out.close()

    @property
    def server_pid(self) -> int:
        """The fork server's process id."""
        return self._server.pid

    @property
    def rows(self) -> int:
        """Number of slots."""
        return len(self._roles)

    @property
    def log_level(self) -> str:
        """The least level that is logged."""
        return self._settings.level

    def bind(self, **keys: Any) -> None:
        """Add keys to every later line of main and of the log process; None removes one."""
        logs.bind(**keys)
        self._start_log_process()
        self._log.put(LOG_CONTEXT + json.dumps(logs.context).encode())

    def stdio_of(self, role: str) -> int:
        """Return the writing end of the pipe that is the standard output and error of a role."""
        return self._pipes[self._roles.index(role)][1]

    def row_of(self, role: str) -> int:
        """Return the slot of a role."""
        return self._roles.index(role)

    def fileno(self) -> int:
        """Return the descriptor that is readable when `exits` may have something to tell; it can change."""
        return self._server.fileno()

    def spawn(self, role: str, target: str, arguments: Any, descriptors: list[int]) -> int:
        """Start a child in a role and return its process id; see `ForkServer.spawn`.

        Its descriptors 1 and 2 are the role's pipe; it gets the log queue's sending end and the slots first.
        """
        shared = [self.stdio_of(role), self.log_queue_in.fileno(), self.slots.descriptor]
        pid = self._server.spawn(target, arguments, [*shared, *descriptors])
        self.slots.clear(self.row_of(role), pid)
        return pid

    def exits(self) -> list[Exit]:
        """Return the ends of children but the log process, which is started again at once; never waits."""
        self.look_after_log()
        found, self._exits = self._exits, []
        return found

    def look_after_log(self) -> None:
        """Start the log process again if it has died."""
        for end in self._server.exits():
            if end.pid == self._log_process:
                self._log_process = None
            else:
                self._exits.append(end)
        self._start_log_process()

    def end_line(self, role: str) -> None:
        """End the line that a dead process of that role may have begun on its standard output."""
        pipe = self.stdio_of(role)
        if select.select([], [pipe], [], 0)[1]:
            os.write(pipe, b"\n")

    def _start_log_process(self) -> None:
        if self._log_process is not None:
            return
        arguments = LogArguments(
            format=choose(self._settings.format, self._standard_error),
            context=json.dumps(logs.context).encode(),
            sources=self._roles,
        )
        descriptors = [
            self._log_queue_out.fileno(),
            self._standard_error,
            self.slots.descriptor,
            *(pipe for pipe, _ in self._pipes),
        ]
        self._log_process = self._server.spawn("job.pipeline.log:main", arguments, descriptors)

    def _end_log(self) -> None:
        """Say that nothing more can come, and wait for the log process to have written it all."""
        self._start_log_process()
        self._log.put(END_OF_LOG)
        deadline = time.monotonic() + _LOG_END
        while (left := deadline - time.monotonic()) > 0:
            select.select([self._server], [], [], left)
            for end in self._server.exits():
                if end.pid != self._log_process:
                    continue
                if end.code == 0:
                    return
                self._log_process = None
                self._start_log_process()
                self._log.put(END_OF_LOG)  # the other one may have been taken before the death
        raise InvariantError("the log process did not end")
