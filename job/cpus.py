"""How many CPUs this process may use."""

from __future__ import annotations


def available() -> int:
    """Return the number of CPUs that the affinity mask, the cgroup's quota and the machine allow, at least 1.

    `os.cpu_count` and `os.process_cpu_count` do not see a container's quota; loky reads it (cgroup v1, v2).
    """
    import loky  # noqa: PLC0415 - 60 ms, and only where --workers is not given

    return int(loky.cpu_count())
