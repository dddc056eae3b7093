"""Everything that processes say to each other.

======================  ==========================================  =============================================
channel                 from → to                                   messages
======================  ==========================================  =============================================
job queue, one a worker main → worker                               `Batch`, `Stop`
the same, backwards     worker → main                               `Ready`, `Finished`, `Refused`
result queue            workers → result process                    `Outcomes`
the same                main → result process                       `Begin`, `Flush`, `Publish`, `Stop`, and
                                                                    `Outcomes` of files that it gives up
its answers             result process → main                       `Begun`, `Stored`, `Published`, `Broken`
log queue               everybody → log process                     a JSON line; `LOG_CONTEXT`, `END_OF_LOG`
======================  ==========================================  =============================================

They are pickled: both ends are processes of one run, and nothing that was read from OUT is ever unpickled.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

from job.results.outcomes import ShardTask

END_OF_LOG = b"\0end"
"""Main's last message on the log queue; no JSON line begins with NUL."""

LOG_CONTEXT = b"\0context"
"""Before the JSON of what the log process's own lines shall say from now on."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Files for a worker: ``file_index`` in ``start`` … ``stop`` - 1; ``attempt`` is 1 for a first try."""

    start: int
    stop: int
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Stop:
    """Nothing more will come: end."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has set its processor up and waits for a job."""


@dataclass(frozen=True, slots=True)
class Finished:
    """All outcomes of the worker's oldest batch are on the result queue; it took ``seconds``."""

    seconds: float
    failed: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The processor cannot start here, and would not anywhere: a sentence, and the traceback if it helps."""

    message: str
    traceback: str | None
    exit_code: int


@dataclass(frozen=True, slots=True)
class Begin:
    """The shard to which the outcomes from here on belong."""

    task: ShardTask


@dataclass(frozen=True, slots=True)
class Begun:
    """The result process has taken over what was stored of the shard: ranges of ``file_index``.

    ``complete`` as in `Stored`.
    """

    shard: int
    ranges: tuple[tuple[int, int], ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class Flush:
    """Store at once all that was received before this message; ``number`` tells it from an earlier one."""

    number: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Nothing more comes for this shard: create its commit record."""

    shard: int


@dataclass(frozen=True, slots=True)
class Stored:
    """These files' outcomes are durable: ranges of ``file_index``; ``flush`` is the `Flush` answered, if any.

    ``complete`` says that all data files of the shard are written: `Publish` is all that is left.
    """

    ranges: tuple[tuple[int, int], ...]
    flush: int | None
    complete: bool


@dataclass(frozen=True, slots=True)
class Published:
    """The shard has its commit record. ``by_us`` is false where another attempt was first."""

    shard: int
    by_us: bool
    counts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Broken:
    """The result process cannot go on, for a reason that is no accident (storage, a bug)."""

    message: str
    traceback: str
    exit_code: int


def pack(message: object) -> bytes:
    """Return the bytes of a message."""
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def unpack(data: bytes) -> Any:
    """Return the message from its bytes."""
    return pickle.loads(data)
