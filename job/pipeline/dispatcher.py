"""Which files a worker gets next, and which have to be done again. No process, no clock, no I/O.

Every file of the shard is in exactly one place until its outcome is stored:

* *pending*: not given out yet, or given back (`Dispatcher.take` gives it out);
* *outstanding*: with a worker (`finished`, `died`);
* *under way*: processed, its outcome not stored yet (`stored`, or `recover` when the result process has died).

A file may be given out again although its outcome is under way: whoever stores keeps the first outcome of each
file. So a doubt is always settled by doing it again, and nothing has to be asked of a dead process.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Final

from job.pipeline.messages import Batch

AIM: Final = 0.05
"""Seconds of work in a batch: some 1,000 times the cost of a message, and short enough for an even end."""

LARGEST: Final = 1024
"""Files in a batch: beyond, the cost of its messages is below 0.1 µs a file."""

_MEMORY: Final = 0.5
"""Weight of the last batch in the estimate of a file's time."""


class Dispatcher:
    """The files of one shard: ``file_index`` in ``start`` … ``stop`` - 1."""

    def __init__(self, start: int, stop: int, *, workers: int, retries: int) -> None:
        """Begin with every file pending."""
        self._start = start
        self._workers = workers
        self._retries = retries
        self._fresh = deque([(start, stop)] if start < stop else [])
        self._suspects: deque[int] = deque()
        self._outstanding: dict[int, deque[Batch]] = {}
        self._done = bytearray(stop - start)
        self._unstored = stop - start
        self._deaths: Counter[int] = Counter()
        self._given_up: set[int] = set()
        self._pace: float | None = None
        self._size = 1
        self._halted = False

    @property
    def stored_all(self) -> bool:
        """Whether the outcome of every file is stored."""
        return self._unstored == 0

    @property
    def stored_map(self) -> bytes:
        """One byte a file: 1 where its outcome is stored."""
        return bytes(self._done)

    @property
    def idle(self) -> bool:
        """Whether no worker has a file, and none can be given out."""
        return not any(self._outstanding.values()) and (self._halted or not (self._fresh or self._suspects))

    @property
    def done(self) -> int:
        """Number of files whose outcome is stored."""
        return len(self._done) - self._unstored

    def take(self, worker: int) -> Batch | None:
        """Return the next batch for a worker, or None when it has enough or nothing is left.

        A suspect travels alone. A second batch waits at the worker only while batches are short: else it
        would wait behind a slow file while another worker has nothing to do.
        """
        outstanding = self._outstanding.setdefault(worker, deque())
        if self._halted or len(outstanding) > self._ahead():
            return None
        if any(self._deaths[batch.start] for batch in outstanding if batch.attempt > 1):
            return None
        batch = self._suspect() if not outstanding else None
        batch = batch or self._slice()
        if batch:
            outstanding.append(batch)
        return batch

    def finished(self, worker: int, seconds: float) -> Batch:
        """Take note that a worker has put all outcomes of its oldest batch on the result queue."""
        batch = self._outstanding[worker].popleft()
        files = batch.stop - batch.start
        pace = seconds / files
        self._pace = pace if self._pace is None else self._pace + _MEMORY * (pace - self._pace)
        self._size = max(1, min(2 * self._size, LARGEST, int(AIM / max(self._pace, 1e-9))))
        return batch

    def died(self, worker: int, index: int | None) -> int | None:
        """Take back what a dead worker had; blame only the file that it had in hand.

        Returns:
            The number of tries when file ``index`` has had its last one and must be given up.
        """
        batches = self._outstanding.pop(worker, deque())
        for batch in batches:
            holes = [index] if index is not None and batch.start <= index < batch.stop else []
            self._fresh.extendleft(reversed(list(self._runs(batch.start, batch.stop, holes))))
        if index is None or not any(batch.start <= index < batch.stop for batch in batches):
            return None
        if self._is_stored(index):
            return None
        self._deaths[index] += 1
        if self._deaths[index] > self._retries:
            self._given_up.add(index)
            return self._deaths[index]
        self._suspects.append(index)
        return None

    def stored(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Take note that the outcomes of these files are durable."""
        for start, stop in ranges:
            low, high = start - self._start, stop - self._start
            self._unstored -= self._done.count(0, low, high)
            self._done[low:high] = b"\1" * (high - low)

    def recover(self) -> list[int]:
        """Make pending what is neither stored, nor pending, nor with a worker: a dead process had it.

        Returns:
            The files among them that were given up; their failure has to be told again.
        """
        there = list(self._fresh) + [(index, index + 1) for index in self._suspects]
        there += [(batch.start, batch.stop) for batches in self._outstanding.values() for batch in batches]
        seen = bytearray(self._done)
        for start, stop in there:
            low, high = start - self._start, stop - self._start
            seen[low:high] = b"\1" * (high - low)
        lost = [index for index in sorted(self._given_up) if not self._is_stored(index)]
        for index in lost:
            seen[index - self._start] = 1
        self._fresh.extend(self._gaps(seen, 0, len(seen)))
        return lost

    def halt(self) -> None:
        """Give nothing out any more."""
        self._halted = True

    def _ahead(self) -> int:
        return 1 if self._pace is not None and self._size * self._pace < 2 * AIM else 0

    def _suspect(self) -> Batch | None:
        while self._suspects:
            index = self._suspects.popleft()
            if not self._is_stored(index):
                return Batch(index, index + 1, self._deaths[index] + 1)
        return None

    def _slice(self) -> Batch | None:
        """Cut a batch off; towards the end the batches shrink, so that all workers end together."""
        if not self._fresh:
            return None
        start, stop = self._fresh.popleft()
        left = stop - start + sum(high - low for low, high in self._fresh)
        size = max(1, min(self._size, left // (2 * self._workers)))
        if start + size < stop:
            self._fresh.appendleft((start + size, stop))
        return Batch(start, min(start + size, stop))

    def _is_stored(self, index: int) -> bool:
        return self._done[index - self._start] == 1

    def _runs(self, start: int, stop: int, holes: list[int]) -> Iterator[tuple[int, int]]:
        seen = bytearray(self._done[start - self._start : stop - self._start])
        for index in holes:
            seen[index - start] = 1
        yield from self._gaps(seen, start - self._start, len(seen))

    def _gaps(self, seen: bytearray, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the runs of zeros as ranges of ``file_index``."""
        position = 0
        while (begin := seen.find(0, position, size)) >= 0:
            end = seen.find(1, begin, size)
            position = size if end < 0 else end
            yield self._start + offset + begin, self._start + offset + position
