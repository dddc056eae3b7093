"""What the tests share."""

import json
import os
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

JOB = str(Path(sysconfig.get_path("scripts")) / "job")
SAMPLE = Path(__file__).parent / "data" / "sample"


@dataclass
class Ended:
    """How a command ended; that every line on its standard error is JSON is checked here, for all tests."""

    code: int
    out: str
    err: bytes
    logs: list[dict] = field(default_factory=list)

    def __post_init__(self):
        for line in self.err.splitlines(keepends=True):
            assert line.endswith(b"\n")
            assert len(line) <= 4096
            found = json.loads(line)
            assert {"timestamp", "level", "event", "run_id", "process", "pid"} <= found.keys()
            self.logs.append(found)

    def events(self, text):
        return [line for line in self.logs if text in line["event"]]

    @property
    def message(self):
        """The sentence that says what was wrong."""
        found = [line["event"] for line in self.logs if line["level"] in {"error", "critical"}]
        assert found, self.err
        return found[-1]


def clean_environment(**extra):
    providers = ("JOB_", "CI_NODE", "CIRCLE_", "SLURM_", "BATCH_", "CLOUD_RUN", "AWS_BATCH", "BUILDKITE")
    left_out = (*providers, "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return kept | extra


def rows(output, name="result"):
    return pq.read_table(Path(output) / f"{name}.parquet").to_pylist()


def check_conservation(output, files):
    """Every file once in the ledger, and its rows all there: invariant 1, from outside."""
    ledger = rows(output, "files")
    assert [row["file_index"] for row in ledger] == list(range(files))
    results, failures = rows(output), rows(output, "failures")
    counted = {}
    for row in results:
        counted[row["file_index"]] = counted.get(row["file_index"], 0) + 1
    for row in ledger:
        assert row["rows"] == counted.get(row["file_index"], 0), row
    assert [row["file_index"] for row in failures] == [
        row["file_index"] for row in ledger if row["status"] == "failed"
    ]
    indexes = [row["file_index"] for row in results]
    assert indexes == sorted(indexes)
