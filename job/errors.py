"""What can go wrong, and the exit code that says so.

The codes are part of the contract: a Kubernetes ``podFailurePolicy`` decides by them whether a pod is
tried again. 65, 70, 74 and 75 are the values of ``sysexits.h``.
"""

from __future__ import annotations

from typing import ClassVar


class JobError(Exception):
    """A failure of the run. Its text is one sentence for the user: what was wrong, where, what to do."""

    exit_code: ClassVar[int] = 70


class UsageError(JobError):
    """The command or its configuration is wrong; the same command will fail again."""

    exit_code = 2


class TooManyFailuresError(JobError):
    """Finished and published, but more files failed than ``--max-failures`` allows."""

    exit_code = 65


class InvariantError(JobError):
    """A bug of this program: a promise was found broken. Names the files concerned."""

    exit_code = 70


class StorageError(JobError):
    """Input or output storage failed."""

    exit_code = 74


class DamagedError(StorageError):
    """A plan, a commit record or a data file is not what its writer wrote."""


class NotReadyError(JobError):
    """Something that another process makes is not there yet: the plan, or shards in reduce."""

    exit_code = 75


class InterruptedRunError(JobError):
    """Ended by a signal; what was done is stored, and the same command goes on."""

    def __init__(self, signal_number: int, message: str) -> None:
        """Keep the number of the signal: the exit code is 128 + ``signal_number``."""
        super().__init__(message)
        self.signal_number = signal_number
