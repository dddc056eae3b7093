"""Which shard am I: what the engine that starts the tasks says of it.

Every engine has its own variable. The number of shards stands in the plan; where an engine gives its number
of tasks too, both must agree, else files would be missed or done twice without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from job.errors import UsageError


@dataclass(frozen=True, slots=True)
class Provider:
    """An engine, and what it tells a task.

    Attributes:
        name: Its name, as the log gives it.
        index: Variable that holds the task's index.
        count: Variable that holds the number of tasks, or None where there is none.
        first: Index of the first task.
        source: Where the engine documents them.
    """

    name: str
    index: str
    count: str | None
    first: int
    source: str


PROVIDERS: Final = (
    Provider(
        "Kubernetes", "JOB_COMPLETION_INDEX", None, 0,
        "kubernetes.io/docs/tasks/job/indexed-parallel-processing-static",
    ),
    Provider(
        "Cloud Run", "CLOUD_RUN_TASK_INDEX", "CLOUD_RUN_TASK_COUNT", 0,
        "cloud.google.com/run/docs/container-contract",
    ),
    Provider(
        "Google Batch", "BATCH_TASK_INDEX", "BATCH_TASK_COUNT", 0,
        "cloud.google.com/batch/docs/create-run-basic-job",
    ),
    Provider(
        "AWS Batch", "AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE", 0,
        "docs.aws.amazon.com/batch/latest/userguide/job_env_vars.html",
    ),
    Provider(
        "Slurm", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", 0,
        "slurm.schedmd.com/job_array.html",
    ),
    Provider(
        "GitLab", "CI_NODE_INDEX", "CI_NODE_TOTAL", 1,
        "docs.gitlab.com/ci/variables/predefined_variables",
    ),
    Provider(
        "CircleCI", "CIRCLE_NODE_INDEX", "CIRCLE_NODE_TOTAL", 0,
        "circleci.com/docs/reference/variables",
    ),
    Provider(
        "Buildkite", "BUILDKITE_PARALLEL_JOB", "BUILDKITE_PARALLEL_JOB_COUNT", 0,
        "buildkite.com/docs/pipelines/configure/environment-variables",
    ),
    Provider(
        "Azure Pipelines", "SYSTEM_JOBPOSITIONINPHASE", "SYSTEM_TOTALJOBSINPHASE", 1,
        "learn.microsoft.com/azure/devops/pipelines/build/variables",
    ),
)  # fmt: skip
"""In the order in which they are asked."""

_SLURM_FIRST: Final = "SLURM_ARRAY_TASK_MIN"
_SLURM_STEP: Final = "SLURM_ARRAY_TASK_STEP"


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """The shard to map, and who said so.

    Attributes:
        index: From 0.
        source: ``--shard-index``, ``JOB_SHARD_INDEX``, a provider's name, or ``the only shard``.
        count: The number of tasks, where the provider gives it.
    """

    index: int
    source: str
    count: int | None = None

    def check(self, shards: int) -> None:
        """Show that the index is one of the plan's.

        Raises:
            UsageError: It is not, or the provider counts other tasks than the plan has shards.
        """
        if self.count is not None and self.count != shards:
            raise UsageError(
                f"{self.source} runs {self.count} tasks, but the plan has {shards} shards: "
                "start as many tasks as there are shards"
            )
        if not 0 <= self.index < shards:
            raise UsageError(
                f"shard index {self.index} (from {self.source}) is outside the plan, "
                f"whose shards are 0 to {shards - 1}"
            )


def find(given: int | None, environment: Mapping[str, str], shards: int) -> ShardIndex:
    """Return the shard to map.

    Args:
        given: The value of ``--shard-index``, or None.
        environment: The process's environment, as the command line was given it.
        shards: Number of shards in the plan.

    Raises:
        UsageError: No index and several shards; an index that is no number or outside the plan; a provider
            whose variables are not whole, or whose count is not the plan's.
    """
    found = _find(given, environment)
    if found is None:
        if shards != 1:
            raise UsageError(
                f"the plan has {shards} shards: give --shard-index, or start the tasks with an "
                "engine that tells each its index"
            )
        found = ShardIndex(0, "the only shard")
    found.check(shards)
    return found


def _find(given: int | None, environment: Mapping[str, str]) -> ShardIndex | None:
    if given is not None:
        return ShardIndex(given, "--shard-index")
    if "JOB_SHARD_INDEX" in environment:
        return ShardIndex(_number(environment, "JOB_SHARD_INDEX"), "JOB_SHARD_INDEX")
    for provider in PROVIDERS:
        if provider.index in environment:
            return _ask(provider, environment)
    return None


def _ask(provider: Provider, environment: Mapping[str, str]) -> ShardIndex:
    number: Callable[[str], int] = lambda name: _number(environment, name)  # noqa: E731 - one line says it
    count = None
    if provider.count is not None:
        if provider.count not in environment:
            raise UsageError(
                f"{provider.name} gives {provider.index}, but not {provider.count}: without the "
                "number of tasks the index cannot be trusted; give --shard-index"
            )
        count = number(provider.count)
    index = number(provider.index) - provider.first
    if provider.name == "Slurm":
        step = number(_SLURM_STEP) if _SLURM_STEP in environment else 1
        if _SLURM_FIRST not in environment or step < 1:
            raise UsageError(f"Slurm gives {provider.index}, but no {_SLURM_FIRST}: give --shard-index")
        offset = index - number(_SLURM_FIRST)
        if offset % step:
            raise UsageError(
                f"Slurm's {provider.index}={index} is not a whole number of steps of {step} from "
                f"{_SLURM_FIRST}: give --shard-index"
            )
        index = offset // step
    return ShardIndex(index, provider.name, count)


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise UsageError(f"{name}={environment[name]!r} is no number") from None
