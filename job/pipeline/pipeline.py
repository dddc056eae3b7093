"""The pipeline inside a pod, seen from main.

::

                        job queue (one a worker)          result queue (shared)
             ┌─ Batch ─▶ ┌──────────┐ ─ Outcomes ─┐   ┌──────────┐   ┌────────────────┐
    ┌──────┐ │           │ worker 0 │             ├──▶│▒▒▒▒▒▒▒▒▒▒│──▶│ result process │──▶ parts/, results/ …
    │ main │─┤ ◀Finished─└──────────┘             │   └──────────┘   └────────────────┘
    │      │ │           ┌──────────┐             │        ▲                 │
    │      │ └─ Batch ─▶ │ worker 1 │ ────────────┘        │                 │
    │      │   ◀Finished─└──────────┘                      │                 │
    │      │ ── Begin, Flush, Publish, Stop ───────────────┘                 │
    │      │ ◀────────────────────────── Begun, Stored, Published ───────────┘
    └──────┘    everybody ── lines ─▶ log queue ─▶ log process ─▶ standard error     (job.pipeline.runtime)

A queue is a pair of sockets whose messages are whole or not there at all (`job.pipeline.channel`); main holds
both ends of what is shared. Main never waits for one process: it waits for any of them to say something, to
end, or for a moment to come. Each end of a child is told by the fork server.

The order of a shard, and who may end when:

1. main starts the workers, and the result process, which takes over what is stored already (`Begun`);
2. main hands out files until all are processed, and asks to store at once what is there (`Flush`);
3. a file is done when it is `Stored`; what got lost with a dead process is handed out again, back to 2;
4. all files are stored: main stops the workers, and waits until each has ended;
5. nothing more can come: the result process publishes the shard, is stopped, and has ended;
6. main leaves the log process for last (`Runtime.__exit__`).
"""

from __future__ import annotations

import contextlib
import enum
import os
import pickle
import select
import signal
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import structlog

from job import logs
from job.errors import InvariantError, JobError, StorageError, UsageError
from job.pipeline import channel
from job.pipeline.channel import FRAGMENT, MAIN, Sender
from job.pipeline.child import ChildArguments
from job.pipeline.dispatcher import Dispatcher
from job.pipeline.forkserver import Exit
from job.pipeline.messages import (
    Begin,
    Begun,
    Broken,
    Finished,
    Flush,
    Publish,
    Published,
    Ready,
    Refused,
    Stop,
    pack,
    unpack,
)
from job.pipeline.result import ResultArguments
from job.pipeline.runtime import Runtime
from job.pipeline.worker import WorkerArguments
from job.pipeline.workers import Worker, Workers
from job.plan.slice import PlanSlice
from job.processors.load import ProcessorSpec
from job.results.outcomes import Failure, Outcomes, ShardTask
from job.settings import MapSettings

TICK: Final = 0.1
"""Seconds between two looks at the clock for a file's time limit."""

HEARTBEAT: Final = 10.0
"""Seconds between two updates of the attempt's record."""

STOPPING: Final = 5.0
"""Seconds that a process may take to end when it is told to; then it is killed."""

FALSE_STARTS: Final = 8
"""Starts in a row of a process that dies before it is ready, when none was ready before: 13 s in all."""

INTERRUPTED: Final = "was stopped with the run"
"""Why main kills a worker that does not end its work within the grace time; it blames no file."""


class _Phase(enum.Enum):
    ADOPTING = enum.auto()
    WORKING = enum.auto()
    FLUSHING = enum.auto()
    STORED = enum.auto()
    PUBLISHING = enum.auto()
    ENDED = enum.auto()


@dataclass(frozen=True, slots=True)
class ShardOutcome:
    """How a shard ended: published by this attempt or by another one before it, or cut short."""

    task: ShardTask
    published: bool
    by_us: bool
    counts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a shard is: files processed in this attempt, stored, and failed in this attempt."""

    processed: int
    stored: int
    failed: int


class _Ending(Exception):  # noqa: N818 - not an error: it unwinds the loop to `Pipeline.map`
    """The run is cut short: work in hand is ended and stored, nothing more is given out."""


class Pipeline:
    """The processes of one attempt, and main's loop over what they say. A context manager."""

    def __init__(
        self,
        runtime: Runtime,
        settings: MapSettings,
        spec: ProcessorSpec,
        plan: int,
        output: str,
        heartbeat: Callable[[ShardTask, Progress], None],
    ) -> None:
        """Make the queues; nothing is started yet.

        Args:
            runtime: Where children come from and logs go.
            settings: How to map.
            spec: The processor.
            plan: Descriptor of the slice (`job.plan.slice.share`) that holds the files of all shards to map.
            output: OUT.
            heartbeat: Called at the start of a shard and every `HEARTBEAT` seconds.
        """
        self._runtime = runtime
        self._settings = settings
        self._output = output
        self._plan = plan
        self._files = PlanSlice(plan)
        self._heartbeat = heartbeat
        self._log = structlog.get_logger()
        self._spec = os.memfd_create("job-processor", os.MFD_CLOEXEC)
        os.write(self._spec, pickle.dumps(spec))
        self._queue_in, self._queue_out = channel.pair()
        self._queue = Sender(self._queue_in, MAIN, os.getpid())
        self._outbox: deque[bytes] = deque()
        self._workers = Workers(runtime, settings.workers, self._worker_arguments)
        self._result_pid: int | None = None
        self._answers: socket.socket | None = None
        self._result_false_starts = 0
        self._signals: deque[int] = deque()
        self._wakeup_read, self._wakeup_write = socket.socketpair()
        self._task: ShardTask
        self._dispatcher: Dispatcher
        self._phase = _Phase.ENDED
        self._flushes = 0
        self._answered = 0
        self._published: Published | None = None
        self._result_deaths = 0
        self._begun = False
        self._ending = self._at_once = self._stopping = False
        self._failures: dict[int, Failure] = {}
        self._processed = self._failed = 0
        self._next_heartbeat = 0.0
        self.interrupted_by: int | None = None
        self.failed_fast = False

    def __enter__(self) -> Self:
        """Take over SIGTERM and SIGINT, where this thread may."""
        for end in (self._wakeup_read, self._wakeup_write):
            end.setblocking(False)
        self._old_handlers: dict[int, Any] = {}
        with contextlib.suppress(ValueError):  # not the main thread: its program handles signals
            self._old_wakeup = signal.set_wakeup_fd(self._wakeup_write.fileno(), warn_on_full_buffer=False)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old_handlers[number] = signal.signal(
                    number, lambda number, _: self._signals.append(number)
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End what is left, at once."""
        for worker in self._workers.alive:
            self._workers.kill(worker, "the run ends")
        if self._result_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._result_pid, signal.SIGKILL)
        deadline = time.monotonic() + STOPPING
        while (self._workers.alive or self._result_pid) and time.monotonic() < deadline:
            select.select([self._runtime], [], [], TICK)
            for end in self._runtime.exits():
                if end.pid == self._result_pid:
                    self._result_pid = None
                elif found := self._workers.by_pid(end.pid):
                    self._workers.bury(found)
        if self._old_handlers:
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._old_wakeup)
        for queue in (self._queue_in, self._queue_out, self._wakeup_read, self._wakeup_write):
            queue.close()
        if self._answers:
            self._answers.close()
        os.close(self._spec)

    def map(self, tasks: Sequence[ShardTask]) -> list[ShardOutcome]:
        """Map the shards one after the other with the same processes, and stop these.

        Returns:
            One outcome a shard that was begun; the last one is not published where the run was cut short:
            see `interrupted_by` and `failed_fast`.

        Raises:
            UsageError: The processor cannot start.
            StorageError: Storage failed.
            InvariantError: A bug.
        """
        outcomes: list[ShardOutcome] = []
        for task in tasks:
            self._begin(task)
            try:
                while self._phase is not _Phase.ENDED:
                    self._until(lambda: self._phase in {_Phase.STORED, _Phase.ENDED})
                    if task is tasks[-1]:
                        self._stop_workers()
                    self._publish()
            except _Ending:
                self._cut_short()
            found = self._published
            by_us, counts = (found.by_us, found.counts) if found else (False, {})
            outcomes.append(ShardOutcome(task, found is not None, by_us, counts))
            if found is None:
                break
            self._log.info("shard finished", published_by_us=by_us, **counts)
        if not self._at_once:
            self._stop_workers()
            self._stop_result_process()
        return outcomes

    # -- a shard ---------------------------------------------------------------------------------------

    def _begin(self, task: ShardTask) -> None:
        self._task = task
        self._dispatcher = Dispatcher(
            task.start, task.stop, workers=self._settings.workers, retries=self._settings.retries
        )
        self._runtime.bind(shard_index=task.shard, shard_count=task.shards, attempt=task.attempt)
        self._processed = self._failed = 0
        self._failures.clear()
        self._published = None
        self._result_deaths = 0
        self._begun = False
        self._phase = _Phase.ADOPTING
        self._workers.start_missing()
        if self._result_pid is None:
            self._start_result_process()
        else:
            self._tell_result_process(Begin(task))
        self._next_heartbeat = 0.0

    def _publish(self) -> None:
        """Have the shard published; a result process that dies over it has a successor that begins again."""
        if self._phase is _Phase.STORED:
            self._phase = _Phase.PUBLISHING
            self._tell_result_process(Publish(self._task.shard))
            self._until(lambda: self._phase is not _Phase.PUBLISHING)

    def _cut_short(self) -> None:
        """Let work in hand end, store it, publish nothing; a second signal ends at once."""
        self._ending = True
        self._dispatcher.halt()
        try:
            self._until(lambda: self._dispatcher.idle, time.monotonic() + self._settings.grace)
            for worker in self._workers.alive:
                if not self._dispatcher.idle:
                    self._workers.kill(worker, INTERRUPTED)
            if self._phase in {_Phase.WORKING, _Phase.FLUSHING}:
                self._flush()
                self._until(
                    lambda: self._answered == self._flushes or self._phase is _Phase.ADOPTING,
                    time.monotonic() + self._settings.grace,
                )
        except _Ending:
            self._at_once = True

    # -- the loop --------------------------------------------------------------------------------------

    def _until(self, reached: Callable[[], bool], deadline: float | None = None) -> None:
        """Serve all processes until something is reached, or the deadline."""
        while not reached() and (deadline is None or time.monotonic() < deadline):
            self._wait(deadline)
            self._look_at_signals()
            self._look_at_exits()
            self._look_at_clock()
            self._advance()

    def _wait(self, deadline: float | None) -> None:
        """Wait until somebody says something or a moment has come, and hear what is said."""
        poll = select.poll()
        heard: dict[int, Callable[[], None]] = {}
        for worker in self._workers.alive:
            if worker.jobs is not None:
                heard[worker.jobs.fileno()] = lambda worker=worker: self._hear_worker(worker)  # type: ignore[misc]
        if self._answers is not None:
            heard[self._answers.fileno()] = self._hear_result_process
        for number in (*heard, self._runtime.fileno(), self._wakeup_read.fileno()):
            poll.register(number, select.POLLIN)
        if self._outbox:
            poll.register(self._queue_in, select.POLLOUT)
        for number, _ in poll.poll(max(0.0, self._patience(deadline)) * 1000):
            if number in heard:
                heard[number]()
        self._send_outbox()

    def _patience(self, deadline: float | None) -> float:
        now = time.monotonic()
        moments = [self._next_heartbeat, deadline or now + HEARTBEAT]
        if self._settings.timeout is not None:
            moments.append(now + TICK)
        if self._phase is _Phase.WORKING and (start := self._workers.next_start()) is not None:
            moments.append(start)
        return min(moments) - now

    def _look_at_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakeup_read.recv(4096)
        while self._signals:
            number = self._signals.popleft()
            first = self.interrupted_by is None
            self.interrupted_by = number
            name = signal.Signals(number).name
            self._log.warning("ending" if first else "ending at once", signal=name)
            raise _Ending

    def _look_at_exits(self) -> None:
        for end in self._runtime.exits():
            if end.pid == self._result_pid:
                self._result_process_ended(end)
            elif worker := self._workers.by_pid(end.pid):
                self._worker_ended(worker, end)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if self._phase is not _Phase.ENDED and now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT
            self._heartbeat(self._task, Progress(self._processed, self._dispatcher.done, self._failed))
        if self._settings.timeout is not None:
            for worker, index in self._workers.overdue(self._settings.timeout):
                self._log.warning("file takes too long", **self._file(index), worker=worker.role)
                self._workers.kill(worker, "timeout")

    def _advance(self) -> None:
        """Do what can be done now."""
        if self._phase is _Phase.WORKING and not self._ending:
            self._workers.start_missing()
            self._hand_out()
            if self._dispatcher.idle:
                self._phase = _Phase.FLUSHING
                self._flush()

    def _hand_out(self) -> None:
        for worker in self._workers:
            while worker.ready and not worker.killed_for:
                batch = self._dispatcher.take(worker.number)
                if batch is None:
                    break
                worker.send(batch)

    # -- workers ---------------------------------------------------------------------------------------

    def _worker_arguments(self, number: int) -> tuple[WorkerArguments, list[int]]:
        arguments = WorkerArguments(
            self._child_arguments(f"worker-{number}"), number, self._settings.allow_changed
        )
        return arguments, [self._queue_in.fileno(), self._plan, self._spec]

    def _child_arguments(self, role: str) -> ChildArguments:
        kept = ("run_id", "shard_index", "shard_count", "attempt")
        return ChildArguments(
            role,
            self._runtime.row_of(role),
            self._settings.workers + 2,
            self._runtime.log_level,
            tuple((key, logs.context[key]) for key in kept if key in logs.context),
        )

    def _hear_worker(self, worker: Worker) -> None:
        for message in worker.messages():
            if isinstance(message, Ready):
                self._workers.was_ready(worker)
            elif isinstance(message, Refused):
                if message.traceback:
                    self._log.error("processor cannot start", exception=message.traceback)
                raise UsageError(message.message)
            elif isinstance(message, Finished):
                batch = self._dispatcher.finished(worker.number, message.seconds)
                self._processed += batch.stop - batch.start
                self._failed += message.failed
        limit = self._settings.fail_fast
        if limit is not None and self._failed >= limit and not self.failed_fast:
            self.failed_fast = True
            raise _Ending

    def _worker_ended(self, worker: Worker, end: Exit) -> None:
        """Take back what a dead worker had; blame the file it had in hand, and no other."""
        self._hear_worker(worker)
        reason = worker.killed_for or end.manner
        was_ready = worker.ready
        index = self._workers.bury(worker)
        if end.code == 0 and self._stopping:
            return
        if end.code is None or reason == INTERRUPTED:
            index = None  # it was taken along, or stopped: not the file's doing
        known = {} if index is None else self._file(index)
        self._log.warning("worker died", worker=worker.role, error=reason, **known)
        if not was_ready and not self._workers.any_was_ready and worker.false_starts >= FALSE_STARTS:
            raise JobError(f"no worker can start: each dies before it is ready ({reason})")
        tries = self._dispatcher.died(worker.number, index)
        if tries is not None and index is not None:
            self._give_up(index, reason, tries)

    def _give_up(self, index: int, reason: str, tries: int) -> None:
        if reason == "timeout":
            failure = Failure(index, "timeout", f"took longer than {self._settings.timeout:g} s", None, tries)
        else:
            failure = Failure(index, "WorkerDied", f"its worker {reason}", None, tries)
        self._failures[index] = failure
        self._failed += 1
        self._log.error("file given up", error=failure.message, attempts=tries, **self._file(index))
        self._tell_failure(failure)

    def _tell_failure(self, failure: Failure) -> None:
        self._tell_result_process(
            Outcomes(
                worker=MAIN,
                indexes=array("q", [failure.file_index]).tobytes(),
                started=array("d", [time.time()]).tobytes(),
                seconds=array("d", [0.0]).tobytes(),
                failures=(failure,),
                results=None,
            )
        )

    def _file(self, index: int) -> dict[str, Any]:
        planned = next(self._files.rows(index, index + 1))
        return {"file_index": index, "path": planned.file.path}

    def _stop_workers(self) -> None:
        """Nothing more comes for the workers: they end; who does not is killed."""
        self._stopping = True
        self._workers.stop()
        self._until(lambda: not self._workers.alive, time.monotonic() + STOPPING)
        for worker in self._workers.alive:
            self._log.warning("worker does not end and is killed", worker=worker.role)
            self._workers.kill(worker, "did not end")
        self._until(lambda: not self._workers.alive, time.monotonic() + STOPPING)
        self._stopping = False

    # -- result process --------------------------------------------------------------------------------

    def _start_result_process(self) -> None:
        self._answers, theirs = channel.pair()
        arguments = ResultArguments(
            self._child_arguments("result"),
            self._output,
            self._task,
            self._settings.checkpoint_seconds,
            self._result_deaths > 0,
        )
        stored = os.memfd_create("job-stored", os.MFD_CLOEXEC)
        if self._begun:
            os.write(stored, self._dispatcher.stored_map)
        with theirs:
            self._result_pid = self._runtime.spawn(
                "result",
                "job.pipeline.result:main",
                arguments,
                [theirs.fileno(), self._queue_out.fileno(), self._plan, stored],
            )
        os.close(stored)

    def _tell_result_process(self, message: object) -> None:
        self._outbox.append(pack(message))
        self._send_outbox()

    def _send_outbox(self) -> None:
        """Put main's messages on the result queue as far as it has room: main does not wait for it."""
        while self._outbox and self._queue.try_send(self._outbox[0]):
            self._outbox.popleft()

    def _flush(self) -> None:
        self._flushes += 1
        self._tell_result_process(Flush(self._flushes))

    def _hear_result_process(self) -> None:
        while self._answers is not None:
            try:
                packet = self._answers.recv(4 * FRAGMENT, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionResetError):
                return
            if not packet:
                return
            self._take_answer(unpack(packet))

    def _take_answer(self, message: Any) -> None:
        if isinstance(message, Broken):
            self._log.debug("result process", exception=message.traceback)
            kinds = {2: UsageError, 70: InvariantError, 74: StorageError}
            raise kinds.get(message.exit_code, InvariantError)(message.message)
        if isinstance(message, Published):
            if message.shard == self._task.shard:
                self._published = message
                self._phase = _Phase.ENDED
            return
        self._dispatcher.stored(message.ranges)
        if isinstance(message, Begun):
            if message.shard == self._task.shard:
                self._result_false_starts = 0
                self._begun = True
                self._phase = _Phase.STORED if message.complete else _Phase.WORKING
                self._recover()
        elif message.flush == self._flushes:
            self._answered = message.flush
            if message.complete:
                self._phase = _Phase.STORED
            elif self._phase is _Phase.FLUSHING:
                self._phase = _Phase.WORKING
                if not self._result_deaths:
                    raise InvariantError(f"shard {self._task.shard}: outcomes were lost though no process died")
                self._recover()

    def _recover(self) -> None:
        """Have done again what a dead result process had not stored."""
        for index in self._dispatcher.recover():
            self._tell_failure(self._failures[index])

    def _result_process_ended(self, end: Exit) -> None:
        self._hear_result_process()
        if self._answers is not None:
            self._answers.close()
        self._answers = None
        self._result_pid = None
        self._runtime.end_line("result")
        if self._phase is _Phase.ENDED:
            return
        self._log.warning("result process died", error=end.manner)
        self._result_deaths += 1
        self._result_false_starts += 1
        if self._result_false_starts > FALSE_STARTS:
            raise InvariantError(f"the result process dies whenever it starts ({end.manner})")
        self._phase = _Phase.ADOPTING
        self._start_result_process()

    def _stop_result_process(self) -> None:
        self._phase = _Phase.ENDED
        self._tell_result_process(Stop())
        self._until(lambda: self._result_pid is None, time.monotonic() + STOPPING)
