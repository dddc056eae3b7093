"""Shows, before any work starts, that a user's processor can be imported: in a child, not in main."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import traceback
from typing import Any

import structlog

from job.errors import JobError, UsageError
from job.pipeline import channel
from job.pipeline.channel import FRAGMENT
from job.pipeline.child import ChildArguments, enter, leave
from job.pipeline.messages import Ready, Refused, pack, unpack
from job.pipeline.runtime import Runtime
from job.processors.load import ProcessorSpec, load

ROLE = "result"
"""The role whose standard output it uses: the result process does not run yet."""


def main(arguments: ChildArguments, descriptors: list[int]) -> int:
    """Load the processor whose spec is in the second descriptor, and answer on the first."""
    _, (answer_descriptor, spec_descriptor) = enter(arguments, descriptors)
    answer = socket.socket(fileno=answer_descriptor)
    size = os.fstat(spec_descriptor).st_size
    spec: ProcessorSpec = pickle.loads(os.pread(spec_descriptor, size, 0))  # noqa: S301 - from main
    message: Any = Ready()
    try:
        load(spec)
    except JobError as error:
        cause = error.__cause__
        trace = "".join(traceback.format_exception(cause)) if cause else None
        message = Refused(str(error), trace, error.exit_code)
    answer.send(pack(message))
    return leave(0)


def check(runtime: Runtime, spec: ProcessorSpec) -> None:
    """Show that a processor can be loaded.

    Raises:
        UsageError: It cannot; with the sentence that says why.
    """
    ours, theirs = channel.pair()
    descriptor = os.memfd_create("job-processor", os.MFD_CLOEXEC)
    os.write(descriptor, pickle.dumps(spec))
    arguments = ChildArguments("main", runtime.row_of(ROLE), runtime.rows, runtime.log_level, ())
    with ours, theirs:
        pid = runtime.spawn(
            ROLE, "job.pipeline.check:main", arguments, [theirs.fileno(), descriptor]
        )
        os.close(descriptor)
        theirs.close()
        code = _wait(runtime, pid)
        packet = b""
        if select.select([ours], [], [], 0)[0]:
            packet = ours.recv(4 * FRAGMENT)
    if not packet:
        manner = f"died of {signal.Signals(-code).name}" if code and code < 0 else "ended"
        raise UsageError(f"processor {spec.name}: its import {manner}")
    message = unpack(packet)
    if isinstance(message, Refused):
        if message.traceback:
            structlog.get_logger().debug("processor refused", exception=message.traceback)
        raise UsageError(message.message)


def _wait(runtime: Runtime, pid: int) -> int | None:
    while True:
        for end in runtime.exits():
            if end.pid == pid:
                return end.code
        select.select([runtime], [], [])
