"""The first steps of every child: its standard output, its logs, its one thread."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import socket
import sys
from dataclasses import dataclass
from typing import Any, Final

from job import logs
from job.pipeline.channel import Sender
from job.pipeline.log_queue import LogQueue
from job.pipeline.slots import Slots

_LINE_BUFFERED: Final = 1
"""``_IOLBF`` of glibc and musl."""


@dataclass(frozen=True, slots=True)
class ChildArguments:
    """What every child is told.

    Attributes:
        role: Its name in the logs.
        row: Its slot.
        rows: Number of slots.
        log_level: The least level that it logs.
        context: Keys of its log lines.
    """

    role: str
    row: int
    rows: int
    log_level: str
    context: tuple[tuple[str, Any], ...]


def enter(arguments: ChildArguments, descriptors: list[int]) -> tuple[Slots, list[int]]:
    """Set the process up; return the slots and the descriptors that are the role's own.

    What C code prints leaves its buffer with each line, so that a killed process has lost none.
    """
    stdio, log_queue, shared, *own = descriptors
    for standard in (1, 2):
        os.dup2(stdio, standard)
    os.close(stdio)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # type: ignore[union-attr] # a fresh interpreter's own text streams
            encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
    libc = ctypes.CDLL(None)
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, _LINE_BUFFERED, 0)
    faulthandler.enable()
    end = socket.socket(fileno=log_queue)
    logs.configure(
        LogQueue(Sender(end, arguments.row, os.getpid())).put,
        level=arguments.log_level,
        process=arguments.role,
        **dict(arguments.context),
    )
    return Slots(shared, arguments.rows), own


def leave(status: int) -> int:
    """Write what C code still has in its buffers, and hand the exit status on."""
    ctypes.CDLL(None).fflush(None)
    return status
