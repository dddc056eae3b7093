"""The result process: alone it writes the results of the shard, and says when they are durable."""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from job import logs
from job.errors import JobError
from job.pipeline.channel import Receiver
from job.pipeline.child import ChildArguments, enter, leave
from job.pipeline.messages import (
    Begin,
    Begun,
    Broken,
    Flush,
    Publish,
    Published,
    Stop,
    Stored,
    pack,
    unpack,
)
from job.plan.slice import PlanSlice
from job.results.commit import read_record
from job.results.outcomes import Outcomes, ShardTask
from job.results.store import ShardStore, withdraw
from job.storage import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKPOINT_BYTES: Final = 64 << 20
"""Bytes of outcomes in memory before they are stored as a part."""

CHECKPOINT_FILES: Final = 500_000
"""Files whose outcomes wait in memory before they are stored as a part."""


FIRST_INTERVAL: Final = 0.002
"""Seconds to the first checkpoint after a death; doubled each time, so that the run advances however often the
result process is killed, and soon writes no more parts than without a death."""


@dataclass(frozen=True, slots=True)
class ResultArguments:
    """What the result process is told at its start.

    Its own descriptors are its end of the answers' channel, the result queue, the plan's slice, and for each
    file of the shard a byte that is 1 where its outcome is stored: empty for the first process of a shard.

    Attributes:
        child: What every child is told.
        output: OUT.
        task: The shard that is under way.
        checkpoint_seconds: At most so long outcomes are only in memory.
        hurry: Whether a predecessor has died: the first checkpoints come at once.
    """

    child: ChildArguments
    output: str
    task: ShardTask
    checkpoint_seconds: float
    hurry: bool


def main(arguments: ResultArguments, descriptors: list[int]) -> int:
    """Be the result process until main says `Stop`."""
    _, (answers_descriptor, queue, plan, stored) = enter(arguments.child, descriptors)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # main decides when it ends
    answers = socket.socket(fileno=answers_descriptor)
    try:
        process = _ResultProcess(arguments, PlanSlice(plan), lambda message: _answer(answers, message))
        known = os.pread(stored, os.fstat(stored).st_size, 0)
        process.begin(arguments.task, known or None)
        process.serve(Receiver(socket.socket(fileno=queue)))
    except JobError as error:
        _answer(answers, Broken(str(error), traceback.format_exc(), error.exit_code))
        return leave(error.exit_code)
    except Exception as error:  # noqa: BLE001 - a bug; main says so and ends the run
        text = f"the result process failed: {type(error).__qualname__}: {error}"
        _answer(answers, Broken(text, traceback.format_exc(), 70))
        return leave(70)
    return leave(0)


_RANGES: Final = 1000
"""Ranges in one answer: some 20 KB, a message that fits the send buffer."""


def _answer(answers: socket.socket, message: Any) -> None:
    """Tell main; what is too long for one message is told in several, the last of which is decisive."""
    if isinstance(message, Broken):
        message = Broken(message.message[:4000], message.traceback[-16000:], message.exit_code)
    if isinstance(message, (Stored, Begun)) and len(message.ranges) > _RANGES:
        first, rest = message.ranges[:_RANGES], message.ranges[_RANGES:]
        _answer(answers, Stored(first, None, complete=False))
        if isinstance(message, Begun):
            _answer(answers, Begun(message.shard, rest, message.complete))
        else:
            _answer(answers, Stored(rest, message.flush, message.complete))
        return
    answers.send(pack(message))


class _ResultProcess:
    def __init__(self, arguments: ResultArguments, plan: PlanSlice, answer: Callable[[Any], None]) -> None:
        self._arguments = arguments
        self._plan = plan
        self._answer = answer
        self._storage = LocalStorage(arguments.output)
        self._log = structlog.get_logger()
        self._task: ShardTask
        self._store: ShardStore
        self._due: float
        self._interval = FIRST_INTERVAL if arguments.hurry else arguments.checkpoint_seconds

    def begin(self, task: ShardTask, stored: bytes | None) -> None:
        """Turn to a shard; a second call for the same one changes nothing."""
        if getattr(self, "_task", None) == task:
            return
        logs.bind(shard_index=task.shard)
        self._task = task
        self._later()
        if self._published():
            return
        self._store = ShardStore(self._storage, task, self._plan, stored)
        self._answer(Begun(task.shard, self._store.stored, self._store.complete))

    def serve(self, queue: Receiver) -> None:
        """Store outcomes until main says `Stop`."""
        while True:
            received = queue.receive(max(0.0, self._due - time.monotonic()))
            if received is None:
                self._checkpoint()
                continue
            message = unpack(received[1])
            if isinstance(message, Outcomes):
                self._store.add(message)
                if (
                    self._store.waiting_bytes >= CHECKPOINT_BYTES
                    or self._store.waiting_files >= CHECKPOINT_FILES
                    or time.monotonic() >= self._due
                ):
                    self._checkpoint()
            elif isinstance(message, Begin):
                self.begin(message.task, None)
            elif isinstance(message, Flush):
                self._flush(message)
            elif isinstance(message, Publish):
                self._publish(message)
            elif isinstance(message, Stop):
                return

    def _later(self) -> None:
        self._due = time.monotonic() + self._interval

    def _checkpoint(self) -> None:
        ranges = self._store.checkpoint()
        if ranges:
            self._interval = min(2 * self._interval, self._arguments.checkpoint_seconds)
        self._later()
        if ranges:
            self._answer(Stored(ranges, None, complete=False))

    def _flush(self, message: Flush) -> None:
        if self._store.complete:
            self._answer(Stored((), message.number, complete=True))
            return
        try:
            ranges = self._store.finish()
        except FileNotFoundError:
            if self._published():
                return
            raise
        self._later()
        self._answer(Stored(ranges, message.number, self._store.complete))

    def _publish(self, message: Publish) -> None:
        """Publish the shard; a message that was meant for a dead predecessor is told again by main."""
        if message.shard != self._task.shard or not self._store.complete:
            return
        by_us = self._store.publish()
        if not by_us:
            self._log.info("shard was published by another attempt")
        self._answer(Published(self._task.shard, by_us, self._store.counts))

    def _published(self) -> bool:
        """Say whether the shard has its commit record; then tell main, and leave nothing behind."""
        record = read_record(self._storage, self._task.shard, self._task.shards)
        if record is None:
            return False
        by_us = record.attempt == self._task.attempt
        if not by_us:
            self._log.info("shard was published by another attempt")
            withdraw(self._storage, self._task)
        self._answer(Published(self._task.shard, by_us, dict(record.counts)))
        return True
