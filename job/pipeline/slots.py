"""What each worker is doing, in memory that main shares with it.

One row of eight 64-bit integers a worker: a cache line, written by nobody else, read without a lock. When a
worker dies, its row tells which file it had in hand; while it lives, since when. A single aligned 64-bit store
cannot be torn, so every value on its own is right; a reader takes `Slot.index` before and after `Slot.since`
where the pair matters.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Final

_ROW: Final = 8
_INDEX, _SINCE, _PHASE, _PID, _DROPPED = range(5)

NOTHING: Final = -1
IDLE, PROCESSING, SENDING = range(3)


@dataclass(frozen=True, slots=True)
class Slot:
    """A worker's row as it was read.

    Attributes:
        index: ``file_index`` of the file in hand, or `NOTHING`.
        since: ``time.monotonic_ns()`` when it was taken.
        phase: `IDLE`, `PROCESSING`, or `SENDING` its result.
    """

    index: int
    since: int
    phase: int


class Slots:
    """The rows of all workers."""

    def __init__(self, descriptor: int, count: int) -> None:
        """Map the memory behind ``descriptor``, which has room for ``count`` workers."""
        self.descriptor = descriptor
        self._cells = memoryview(mmap.mmap(descriptor, count * _ROW * 8)).cast("q")

    @classmethod
    def create(cls, count: int) -> Slots:
        """Make the memory for ``count`` workers; an anonymous file, so nothing stays behind."""
        descriptor = os.memfd_create("job-slots", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, count * _ROW * 8)
        slots = cls(descriptor, count)
        for worker in range(count):
            slots.clear(worker, 0)
        return slots

    def clear(self, worker: int, pid: int) -> None:
        """Begin the row of a new process."""
        row = worker * _ROW
        self._cells[row + _INDEX] = NOTHING
        self._cells[row + _PHASE] = IDLE
        self._cells[row + _PID] = pid

    def begin(self, worker: int, index: int, now: int) -> None:
        """Say that the worker takes file ``index`` in hand at ``now`` (``time.monotonic_ns()``)."""
        row = worker * _ROW
        self._cells[row + _SINCE] = now
        self._cells[row + _PHASE] = PROCESSING
        self._cells[row + _INDEX] = index

    def sending(self, worker: int) -> None:
        """Say that the worker sends results: waiting for the result process is not the file's fault."""
        self._cells[worker * _ROW + _PHASE] = SENDING

    def idle(self, worker: int) -> None:
        """Say that the worker has nothing in hand."""
        row = worker * _ROW
        self._cells[row + _INDEX] = NOTHING
        self._cells[row + _PHASE] = IDLE

    def read(self, worker: int) -> Slot:
        """Return the worker's row."""
        row = worker * _ROW
        return Slot(self._cells[row + _INDEX], self._cells[row + _SINCE], self._cells[row + _PHASE])

    def pid(self, worker: int) -> int:
        """Return the worker's process id; 0 before its start."""
        return self._cells[worker * _ROW + _PID]

    def close(self) -> None:
        """Give the descriptor back; the mapping goes with the process or the last reference."""
        os.close(self.descriptor)
