"""A worker: takes a batch of files, processes them, puts the outcomes on the result queue."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import time
import traceback
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import structlog

from job import logs
from job.errors import JobError
from job.pipeline.channel import FRAGMENT, Sender
from job.pipeline.child import ChildArguments, enter, leave
from job.pipeline.messages import Batch, Finished, Ready, Refused, Stop, pack, unpack
from job.plan.slice import PlanSlice
from job.processors.load import Loaded, ProcessorSpec, load
from job.results.columns import rows_to_batch
from job.results.outcomes import Failure, Outcomes

if TYPE_CHECKING:
    from job.pipeline.slots import Slots

GATHER: Final = 0.010
"""Seconds that outcomes are gathered before they are sent: so long costs nobody anything, and one message
for each file would cost more than a small file's work."""


@dataclass(frozen=True, slots=True)
class WorkerArguments:
    """What a worker is told at its start.

    Its own descriptors are its end of the job queue, the result queue, the plan's slice, and the
    pickled `job.processors.load.ProcessorSpec` in an anonymous file.

    Attributes:
        child: What every child is told.
        number: Which worker it is, from 0.
        allow_changed: Whether a file may differ from the plan.
    """

    child: ChildArguments
    number: int
    allow_changed: bool


def main(arguments: WorkerArguments, descriptors: list[int]) -> int:
    """Be a worker until main says `Stop`."""
    slots, (jobs_descriptor, results, plan, spec) = enter(arguments.child, descriptors)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # main decides when a worker ends
    jobs = socket.socket(fileno=jobs_descriptor)
    try:
        loaded = _load(spec)
    except JobError as error:
        jobs.send(pack(Refused(str(error), _cause(error), error.exit_code)))
        return leave(error.exit_code)
    except BaseException as error:  # noqa: BLE001 - a processor may raise anything in setup()
        sentence = f"setup() of the processor failed: {type(error).__qualname__}: {error}"
        jobs.send(pack(Refused(sentence, traceback.format_exc(), 2)))
        return leave(2)
    worker = _Worker(
        arguments,
        loaded,
        slots,
        PlanSlice(plan),
        Sender(socket.socket(fileno=results), arguments.number, os.getpid()),
    )
    jobs.send(pack(Ready()))
    while True:
        message = unpack(jobs.recv(FRAGMENT))
        if isinstance(message, Stop):
            return leave(0)
        jobs.send(pack(worker.process(message)))


def _load(descriptor: int) -> Loaded:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    size = os.fstat(descriptor).st_size
    spec: ProcessorSpec = pickle.loads(os.pread(descriptor, size, 0))
    loaded = load(spec)
    if loaded.setup:
        loaded.setup()
    return loaded


def _cause(error: JobError) -> str | None:
    if error.__cause__ is None:
        return None
    return "".join(traceback.format_exception(error.__cause__))


class _Worker:
    def __init__(
        self,
        arguments: WorkerArguments,
        loaded: Loaded,
        slots: Slots,
        files: PlanSlice,
        results: Sender,
    ) -> None:
        self._number = arguments.number
        self._allow_changed = arguments.allow_changed
        self._call = loaded.call
        self._slots = slots
        self._files = files
        self._results = results
        self._gathered = _Gathered(arguments.number, loaded.schema)
        self._log = structlog.get_logger()

    def process(self, batch: Batch) -> Finished:
        """Process the files of a batch; all outcomes are on the result queue when it returns."""
        begin = time.perf_counter()
        failed = self._gathered.failed
        for planned in self._files.rows(batch.start, batch.stop):
            if planned.shard != logs.context.get("shard_index"):
                logs.bind(shard_index=planned.shard)
            self._process(planned, batch.attempt)
            if self._gathered.age() > GATHER:
                self._send()
        self._send()
        self._slots.idle(self._number)
        return Finished(time.perf_counter() - begin, self._gathered.failed - failed)

    def _process(self, planned: Any, attempt: int) -> None:
        file = planned.file
        started = time.time()
        begin = time.monotonic_ns()
        self._slots.begin(self._number, planned.index, begin)
        result: Any = None
        failure: Failure | None = None
        try:
            result = self._call(file)
            if hasattr(result, "__next__"):  # a generator does its work when it is read
                result = list(result)
        except BaseException as error:  # noqa: BLE001 - SystemExit too fails its file only
            failure = failure_of(planned.index, error, attempt)
        changed = None if self._allow_changed else planned.change()
        if changed:
            failure = Failure(planned.index, "changed", changed, None, attempt)
        seconds = (time.monotonic_ns() - begin) / 1e9
        if failure:
            self._log.warning(
                "file failed",
                path=file.path,
                file_index=planned.index,
                seconds=round(seconds, 6),
                error=f"{failure.error_type}: {failure.message}",
            )
        self._gathered.add(planned.index, started, seconds, result, failure, attempt)

    def _send(self) -> None:
        if not self._gathered:
            return
        self._slots.sending(self._number)
        self._results.send(pack(self._gathered.take()))


def failure_of(index: int, error: BaseException, attempt: int) -> Failure:
    """Return the failure that an exception of a processor makes of its file."""
    return Failure(
        index,
        type(error).__qualname__,
        str(error),
        "".join(traceback.format_exception(error)),
        attempt,
    )


class _Gathered:
    """Outcomes that wait to be sent together."""

    def __init__(self, number: int, schema: Any) -> None:
        self.failed = 0
        self._number = number
        self._schema = schema
        self._clear()

    def _clear(self) -> None:
        self._indexes = array("q")
        self._started = array("d")
        self._seconds = array("d")
        self._results: list[tuple[int, Any]] = []
        self._failures: list[Failure] = []
        self._attempts: dict[int, int] = {}
        self._since = time.monotonic()

    def __bool__(self) -> bool:
        return bool(self._indexes)

    def age(self) -> float:
        """Return the seconds since the first of them began to wait."""
        return time.monotonic() - self._since

    def add(
        self,
        index: int,
        started: float,
        seconds: float,
        result: Any,
        failure: Failure | None,
        attempt: int,
    ) -> None:
        """Take the outcome of one file."""
        if not self._indexes:
            self._since = time.monotonic()
        self._indexes.append(index)
        self._started.append(started)
        self._seconds.append(seconds)
        if failure:
            self._failures.append(failure)
        else:
            self._results.append((index, result))
            if attempt > 1:
                self._attempts[index] = attempt

    def take(self) -> Outcomes:
        """Return all of them as one message; a result that cannot be stored is its file's failure."""
        batch, rejected = rows_to_batch(self._results, self._schema)
        for rejection in rejected:
            self._failures.append(
                failure_of(
                    rejection.file_index,
                    rejection.exception,
                    self._attempts.get(rejection.file_index, 1),
                )
            )
        self.failed += len(self._failures)
        outcomes = Outcomes(
            worker=self._number,
            indexes=self._indexes.tobytes(),
            started=self._started.tobytes(),
            seconds=self._seconds.tobytes(),
            failures=tuple(self._failures),
            results=_ipc(batch) if batch.num_rows else None,
        )
        self._clear()
        return outcomes


def _ipc(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data
