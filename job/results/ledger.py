"""Conservation: every file stands in the ledger once, and its rows are all the rows there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from job.errors import InvariantError
from job.results import schemas


class Ledger:
    """The sums of a ledger that streams by, checked against the files it must hold.

    Attributes:
        rows: Results that it accounts for.
        failed: Files that failed.
        bytes: Sizes of all files.
        seconds: Time that the files took, added up over all workers.
    """

    def __init__(self, start: int, stop: int, where: str) -> None:
        """Expect files ``start`` … ``stop`` - 1 in order; ``where`` says whose ledger it is."""
        self._start = start
        self._next = start
        self._stop = stop
        self._where = where
        self.rows = self.failed = self.bytes = 0
        self.seconds = 0.0

    def watch(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Yield the tables of a ledger (`schemas.FILES`) while counting them.

        Raises:
            InvariantError: A file is missing, twice there, or out of order; the first such is named.
        """
        for table in tables:
            indexes = table.column("file_index").to_numpy()
            expected = np.arange(self._next, self._next + len(indexes))
            wrong = np.flatnonzero(indexes != expected)
            if len(wrong):
                raise InvariantError(
                    f"{self._where}: the ledger has file {indexes[wrong[0]]} "
                    f"where file {expected[wrong[0]]} should stand"
                )
            self._next += len(indexes)
            self.rows += pc.sum(table.column("rows")).as_py() or 0
            self.failed += pc.sum(pc.equal(table.column("status"), schemas.FAILED)).as_py() or 0
            self.bytes += pc.sum(table.column("size")).as_py() or 0
            self.seconds += pc.sum(table.column("seconds")).as_py() or 0.0
            yield table

    def check(self, *, results: int, failures: int) -> None:
        """Show that nothing is missing, when all tables have gone by.

        Raises:
            InvariantError: Files, results or failures are missing or too many.
        """
        if self._next != self._stop:
            raise InvariantError(
                f"{self._where}: the ledger ends before file {self._next}, not before {self._stop}"
            )
        if (results, failures) != (self.rows, self.failed):
            raise InvariantError(
                f"{self._where}: {results} results and {failures} failures are stored, "
                f"the ledger has {self.rows} and {self.failed}"
            )

    def counts(self) -> dict[str, Any]:
        """Return the sums: files, ok, failed, rows, bytes, seconds."""
        files = self._next - self._start
        return {
            "files": files,
            "ok": files - self.failed,
            "failed": self.failed,
            "rows": self.rows,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 6),
        }
