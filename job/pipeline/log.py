"""The log process: alone it writes log lines, and its death loses none.

It reads the log queue, where every process puts whole lines, and the pipes that are the standard output and
error of the other processes, where anything may come (a stray ``print``, a C library).

What it takes, it takes in three steps: look (``MSG_PEEK``; ``tee(2)`` for a pipe), write, remove. Killed
between two of them it has lost nothing; its successor, which main gives the same descriptors, writes the line
again. A line is one ``write`` of at most `job.logs.LINE` bytes, so a pipe has it whole or not at all.

Logging must not block the work for ever: where standard error takes nothing for `PATIENCE` seconds, lines are
dropped until it does, and their number is logged.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import select
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from job import logs
from job.pipeline.channel import FRAGMENT, RECEIVED_HEADER
from job.pipeline.messages import END_OF_LOG, LOG_CONTEXT
from job.pipeline.slots import Slots
from job.render import renderer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE: Final = 5.0
"""Seconds that standard error may take nothing before lines are dropped."""

_PIPE: Final = 64 * 1024
"""Capacity of a pipe: a line that fills it without an end is written in pieces."""

_SPLICE_F_NONBLOCK: Final = 2


@dataclass(frozen=True, slots=True)
class LogArguments:
    """What the log process is told at its start.

    Its descriptors are the log queue's receiving end, standard error, the slots, and one pipe for each of
    ``sources``.

    Attributes:
        format: json, console, gcp or ecs.
        context: Keys of the lines it makes itself, as JSON; main sends it again when it changes.
        sources: The role behind each pipe, in the order of the slots.
    """

    format: str
    context: bytes
    sources: tuple[str, ...]


def main(arguments: LogArguments, descriptors: list[int]) -> int:
    """Be the log process until main says `END_OF_LOG`, or everybody who could log is gone."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    queue_descriptor, output, shared, *pipes = descriptors
    queue = socket.socket(fileno=queue_descriptor)
    _take_context(arguments.context)
    writer = _Writer(output, renderer(arguments.format, output))
    slots = Slots(shared, len(pipes))
    sources = {
        pipe: _Source(pipe, name, functools.partial(slots.pid, row), writer)
        for row, (pipe, name) in enumerate(zip(pipes, arguments.sources, strict=True))
    }
    # A pipe that holds the beginning of a line stays readable: only its change is of interest.
    poll = select.epoll()
    poll.register(queue_descriptor, select.EPOLLIN)
    for pipe in pipes:
        poll.register(pipe, select.EPOLLIN | select.EPOLLET)
    ended = False
    while not ended:
        for ready, _ in poll.poll(PATIENCE if writer.dropped else None):
            if ready == queue_descriptor:
                ended = _drain(queue, writer)
            else:
                sources[ready].drain(whole_lines=True)
        writer.report_dropped()
    for source in sources.values():
        source.drain(whole_lines=False)
    writer.report_dropped()
    return 0


def _drain(queue: socket.socket, writer: _Writer) -> bool:
    """Write the lines that are on the queue now; say whether they were the last."""
    size = RECEIVED_HEADER + FRAGMENT
    while True:
        try:
            packet = queue.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        line = packet[RECEIVED_HEADER:]
        if not packet or line == END_OF_LOG:
            if packet:
                queue.recv(size)
            return True
        if line.startswith(LOG_CONTEXT):
            _take_context(line.removeprefix(LOG_CONTEXT))
        else:
            writer.write(line)
        queue.recv(size)


def _take_context(context: bytes) -> None:
    logs.context.clear()
    logs.context.update(json.loads(context) | {"process": "log", "pid": os.getpid()})


class _Source:
    """The standard output and error of one process, read as lines."""

    def __init__(self, pipe: int, name: str, pid: Callable[[], int], writer: _Writer) -> None:
        self._pipe = pipe
        self._name = name
        self._pid = pid
        self._writer = writer
        self._copy_out, self._copy_in = os.pipe2(os.O_CLOEXEC)
        self._tee = ctypes.CDLL(None, use_errno=True).tee

    def drain(self, *, whole_lines: bool) -> None:
        """Write what is in the pipe; the beginning of a line stays there unless ``whole_lines`` is false."""
        while data := self._peek():
            end = data.rfind(b"\n") + 1
            if end == 0:
                if whole_lines and len(data) < _PIPE:
                    return
                end = len(data)
            for line in data[:end].splitlines():
                self._write(line)
            self._remove(end)

    def _write(self, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace").rstrip()
        if text:
            self._writer.write(logs.event("info", text, process=self._name, pid=self._pid(), logger="stdio"))

    def _peek(self) -> bytes:
        size = self._tee(self._pipe, self._copy_in, _PIPE, _SPLICE_F_NONBLOCK)
        if size <= 0:  # nothing there, or nobody left to write
            return b""
        data = b""
        while len(data) < size:
            data += os.read(self._copy_out, size - len(data))
        return data

    def _remove(self, size: int) -> None:
        while size:
            size -= len(os.read(self._pipe, size))


class _Writer:
    """Standard error, that may be slow, stuck or closed."""

    def __init__(self, descriptor: int, render: Callable[[bytes], bytes]) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._render = render
        self._stuck = False
        self._closed = False
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, line: bytes) -> None:
        """Write a line, or count it as dropped."""
        self.report_dropped()
        if self._takes(0 if self._stuck else PATIENCE):
            self._stuck = False
            self._put(line)
        else:
            self._stuck = True
            self.dropped += 1

    def report_dropped(self) -> None:
        """Write how many lines were dropped, as soon as one can be written again."""
        if self.dropped and self._takes(0):
            count, self.dropped = self.dropped, 0
            self._stuck = False
            self._put(logs.event("warning", "log lines dropped", dropped=count))

    def _takes(self, seconds: float) -> bool:
        return self._closed or any(state & select.POLLOUT for _, state in self._poll.poll(seconds * 1000))

    def _put(self, line: bytes) -> None:
        for piece in _pieces(self._render(line)):
            if self._closed:
                return
            try:
                os.write(self._descriptor, piece)
            except OSError:  # whoever read standard error has gone: there is no one to tell
                self._closed = True


def _pieces(text: bytes) -> Iterator[bytes]:
    for start in range(0, len(text), logs.LINE):
        yield text[start : start + logs.LINE]
