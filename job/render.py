"""How log lines look: JSON as it is, JSON with the keys of another system, or text for people."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, Final

from job import logs

FORMATS: Final = ("auto", "json", "console", "gcp", "ecs")

_GCP_SEVERITY: Final = {
    "debug": "DEBUG",
    "info": "INFO",
    "warning": "WARNING",
    "error": "ERROR",
    "critical": "CRITICAL",
}


def choose(name: str, descriptor: int) -> str:
    """Return the format for standard error ``descriptor``: ``auto`` is console on a terminal, else json."""
    if name != "auto":
        return name
    return "console" if os.isatty(descriptor) else "json"


def renderer(name: str, descriptor: int) -> Callable[[bytes], bytes]:
    """Return what turns a JSON line into the line that is written to ``descriptor``."""
    name = choose(name, descriptor)
    if name == "json":
        return lambda line: line
    if name == "console":
        return _console(colors=os.isatty(descriptor))
    rename = {"gcp": _gcp, "ecs": _ecs}[name]
    return lambda line: logs.fit(rename(json.loads(line)))


def _gcp(line: dict[str, Any]) -> dict[str, Any]:
    """Keys that Cloud Logging reads: ``severity``, ``message``, ``time``."""
    level = line.pop("level")
    return {
        "time": line.pop("timestamp"),
        "severity": _GCP_SEVERITY.get(level, "DEFAULT"),
        "message": line.pop("event"),
    } | line


def _ecs(line: dict[str, Any]) -> dict[str, Any]:
    """Keys of the Elastic Common Schema 8."""
    renamed = {
        "@timestamp": line.pop("timestamp"),
        "log.level": line.pop("level"),
        "message": line.pop("event"),
        "ecs.version": "8.11.0",
        "process.name": line.pop("process"),
        "process.pid": line.pop("pid"),
    }
    for ours, theirs in {"error": "error.message", "exception": "error.stack_trace"}.items():
        if ours in line:
            renamed[theirs] = line.pop(ours)
    if "path" in line:
        renamed["file.path"] = line.pop("path")
    return renamed | {f"job.{key}": value for key, value in line.items()}


def _console(*, colors: bool) -> Callable[[bytes], bytes]:
    import structlog  # noqa: PLC0415 - only where people read

    render = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0)
    quiet = ("run_id", "pid", "attempt", "shard_count")

    def text(line: bytes) -> bytes:
        keys = {key: value for key, value in json.loads(line).items() if key not in quiet}
        keys["timestamp"] = keys["timestamp"][11:19]
        return f"{render(None, '', keys)}\n".encode("utf-8", "backslashreplace")

    return text
