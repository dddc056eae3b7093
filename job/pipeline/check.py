"""Shows, before any work starts, that a user's processor can be imported: in a child, not in main."""

from __future__ import annotations

import os
import pickle
import select
import socket
import traceback
from typing import Any

import structlog

from job.errors import JobError, UsageError
from job.pipeline import channel
from job.pipeline.channel import FRAGMENT
from job.pipeline.child import ChildArguments, enter, leave
from job.pipeline.forkserver import Exit
from job.pipeline.messages import Ready, Refused, pack, unpack
from job.pipeline.runtime import Runtime
from job.processors.load import ProcessorSpec, load

ROLE = "result"
"""The role whose standard output it uses: the result process does not run yet."""

TRIES = 5
"""Deaths of the child that are taken for the import's doing."""


def main(arguments: ChildArguments, descriptors: list[int]) -> int:
    """Load the processor whose spec is in the second descriptor, and answer on the first."""
    _, (answer_descriptor, spec_descriptor) = enter(arguments, descriptors)
    answer = socket.socket(fileno=answer_descriptor)
    size = os.fstat(spec_descriptor).st_size
    spec: ProcessorSpec = pickle.loads(os.pread(spec_descriptor, size, 0))
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

    A child that is killed proves nothing, so it is started again, `TRIES` times in all.

    Raises:
        UsageError: It cannot; with the sentence that says why.
    """
    manner = ""
    for _ in range(TRIES):
        message, manner = _ask(runtime, spec)
        if isinstance(message, Ready):
            return
        if isinstance(message, Refused):
            if message.traceback:
                structlog.get_logger().debug("processor refused", exception=message.traceback)
            raise UsageError(message.message)
    raise UsageError(f"processor {spec.name}: the process that imports it {manner}, each time")


def _ask(runtime: Runtime, spec: ProcessorSpec) -> tuple[Any, str]:
    """Return a child's answer, or None, and how the child ended."""
    ours, theirs = channel.pair()
    descriptor = os.memfd_create("job-processor", os.MFD_CLOEXEC)
    os.write(descriptor, pickle.dumps(spec))
    arguments = ChildArguments("main", runtime.row_of(ROLE), runtime.rows, runtime.log_level, ())
    with ours:
        with theirs:
            pid = runtime.spawn(ROLE, "job.pipeline.check:main", arguments, [theirs.fileno(), descriptor])
        os.close(descriptor)
        end = _wait(runtime, pid)
        if select.select([ours], [], [], 0)[0] and (packet := ours.recv(4 * FRAGMENT)):
            return unpack(packet), end.manner
    return None, end.manner


def _wait(runtime: Runtime, pid: int) -> Exit:
    while True:
        for end in runtime.exits():
            if end.pid == pid:
                return end
        select.select([runtime], [], [])
