"""The command line: translates arguments into settings and errors into exit codes, and nothing else."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.exceptions import TyperException

from job import __version__, logs
from job.errors import InterruptedRunError, JobError, UsageError

if TYPE_CHECKING:
    from job.commands import PlanSettings
    from job.pipeline.runtime import Runtime
    from job.settings import Limit, MapSettings

app = typer.Typer(
    name="job",
    help="A batch job over files: every core, every pod, one exact result in Parquet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INPUT: Final = "What to read"
_PROCESS: Final = "How to process"
_LIMITS: Final = "How much may go wrong"
_LOGS: Final = "Logs"

Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="INPUT...", help="Files, folders (with all below), globs."),
]
Output = Annotated[
    str,
    typer.Option("--output", "-o", metavar="OUT", envvar="JOB_OUTPUT", help="Folder for all results."),
]
FilesFrom = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        envvar="JOB_FILES_FROM",
        rich_help_panel=_INPUT,
        help="Read names of inputs from a file, one a line; - is standard input.",
    ),
]
Null = Annotated[
    bool,
    typer.Option("--null", "-0", envvar="JOB_NULL", rich_help_panel=_INPUT, help="Those names end in NUL."),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        envvar="JOB_INCLUDE",
        rich_help_panel=_INPUT,
        help="Take only files whose name (or path, if it has a /) matches.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        envvar="JOB_EXCLUDE",
        rich_help_panel=_INPUT,
        help="Leave out files and folders that match.",
    ),
]
AllowEmpty = Annotated[
    bool,
    typer.Option(
        "--allow-empty",
        envvar="JOB_ALLOW_EMPTY",
        rich_help_panel=_INPUT,
        help="No file at all is a run with no rows, not an error.",
    ),
]
Replan = Annotated[
    bool,
    typer.Option(
        "--replan",
        envvar="JOB_REPLAN",
        rich_help_panel=_INPUT,
        help="Forget an earlier run in OUT and start over.",
    ),
]
Processor = Annotated[
    str,
    typer.Option(
        "--processor",
        "-p",
        metavar="NAME",
        envvar="JOB_PROCESSOR",
        rich_help_panel=_PROCESS,
        help="A built-in (see `job processors`), package.module:function, or file.py:function.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        envvar="JOB_OPTION",
        rich_help_panel=_PROCESS,
        help="An option of the processor; repeatable.",
    ),
]
Shards = Annotated[
    int,
    typer.Option(
        min=1,
        envvar="JOB_SHARDS",
        rich_help_panel=_PROCESS,
        help="Number of slices of the file list; a pod maps one.",
    ),
]
WorkerCount = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-w",
        min=1,
        envvar="JOB_WORKERS",
        rich_help_panel=_PROCESS,
        help="Worker processes; default: the CPUs this container or machine may use.",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        metavar="SECONDS",
        envvar="JOB_TIMEOUT",
        rich_help_panel=_LIMITS,
        help="Time limit of one file; its worker is killed.",
    ),
]
Retries = Annotated[
    int,
    typer.Option(
        min=0,
        envvar="JOB_RETRIES",
        rich_help_panel=_LIMITS,
        help="How often a file is tried again after its worker died with it.",
    ),
]
CheckpointSeconds = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="SECONDS",
        envvar="JOB_CHECKPOINT_SECONDS",
        rich_help_panel=_PROCESS,
        help="At most so long results are only in memory.",
    ),
]
AllowChanged = Annotated[
    bool,
    typer.Option(
        "--allow-changed",
        envvar="JOB_ALLOW_CHANGED",
        rich_help_panel=_LIMITS,
        help="Take files that have changed since they were planned.",
    ),
]
FailFast = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        envvar="JOB_FAIL_FAST",
        rich_help_panel=_LIMITS,
        help="End early, with nothing published, when N files have failed.",
    ),
]
MaxFailures = Annotated[
    str | None,
    typer.Option(
        metavar="N|P%",
        envvar="JOB_MAX_FAILURES",
        rich_help_panel=_LIMITS,
        help="How many files may fail (exit code 65 beyond). Default: 0; for map: no limit.",
    ),
]
Grace = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="SECONDS",
        envvar="JOB_GRACE",
        rich_help_panel=_LIMITS,
        help="Time that work in hand has to end after SIGTERM or SIGINT.",
    ),
]
Wait = Annotated[
    float,
    typer.Option(min=0.0, metavar="SECONDS", envvar="JOB_WAIT", help="Wait so long for missing shards."),
]
LogLevel = Annotated[
    str,
    typer.Option(
        metavar="LEVEL",
        envvar="JOB_LOG_LEVEL",
        rich_help_panel=_LOGS,
        help="debug, info, warning, error or critical.",
    ),
]
LogFormat = Annotated[
    str,
    typer.Option(
        metavar="FORMAT",
        envvar="JOB_LOG_FORMAT",
        rich_help_panel=_LOGS,
        help="json, console, gcp or ecs; auto: console on a terminal, else json.",
    ),
]


@app.command()
def run(
    *,
    inputs: Inputs = None,
    output: Output,
    files_from: FilesFrom = None,
    null: Null = False,
    include: Include = None,
    exclude: Exclude = None,
    allow_empty: AllowEmpty = False,
    replan: Replan = False,
    processor: Processor = "text",
    option: Options = None,
    shards: Shards = 1,
    workers: WorkerCount = None,
    timeout: Timeout = None,
    retries: Retries = 2,
    checkpoint_seconds: CheckpointSeconds = 30.0,
    allow_changed: AllowChanged = False,
    fail_fast: FailFast = None,
    max_failures: MaxFailures = None,
    grace: Grace = 20.0,
    log_level: LogLevel = "info",
    log_format: LogFormat = "auto",
) -> None:
    """Plan, map every shard and reduce: all on this machine.

    The same command again goes on where it stopped, and does nothing where all is done.
    """
    plan_settings = _plan_settings(
        inputs, output, files_from, null, include, exclude, processor, option, shards,
        allow_empty=allow_empty, replan=replan, rescan=False,
    )  # fmt: skip
    map_settings = _map_settings(
        workers, timeout, retries, checkpoint_seconds, fail_fast, grace, allow_changed=allow_changed
    )
    limit = _limit(max_failures)

    def body(runtime: Runtime) -> str:
        from job.commands import run_all  # noqa: PLC0415

        reduced = run_all(plan_settings, map_settings, runtime, max_failures=limit)
        return _summary(reduced.summary, output, current=reduced.current)

    _execute(body, log_level, log_format, map_settings.workers)


@app.command()
def plan(
    *,
    inputs: Inputs = None,
    output: Output,
    shards: Annotated[
        int,
        typer.Option(min=1, envvar="JOB_SHARDS", rich_help_panel=_PROCESS, help="Number of shards."),
    ],
    files_from: FilesFrom = None,
    null: Null = False,
    include: Include = None,
    exclude: Exclude = None,
    allow_empty: AllowEmpty = False,
    if_absent: Annotated[
        bool,
        typer.Option(
            "--if-absent",
            envvar="JOB_IF_ABSENT",
            rich_help_panel=_INPUT,
            help="Take a plan that is there, if it has the same arguments, without scanning.",
        ),
    ] = False,
    replan: Replan = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            envvar="JOB_DRY_RUN",
            rich_help_panel=_INPUT,
            help="Show what would be planned; write nothing.",
        ),
    ] = False,
    processor: Processor = "text",
    option: Options = None,
    log_level: LogLevel = "info",
    log_format: LogFormat = "auto",
) -> None:
    """Freeze the file list, its shards and the processor in OUT/plan.parquet."""
    settings = _plan_settings(
        inputs, output, files_from, null, include, exclude, processor, option, shards,
        allow_empty=allow_empty, replan=replan, if_absent=if_absent, dry_run=dry_run,
    )  # fmt: skip

    def body(runtime: Runtime) -> str:
        from job.commands import plan_files  # noqa: PLC0415

        outcome, _ = plan_files(settings, runtime)
        text = _planned(outcome.plan, created=outcome.created, dry_run=dry_run)
        if dry_run and outcome.table is not None:
            rows = outcome.table.select(["shard", "size", "path"]).to_pylist()
            text = "".join(f"{row['shard']}\t{row['size']}\t{row['path']}\n" for row in rows) + text
        return text

    _execute(body, log_level, log_format)


@app.command("map")
def map_(
    *,
    output: Output,
    shard_index: Annotated[
        int | None,
        typer.Option(
            metavar="I",
            help="Which shard, from 0; default: JOB_SHARD_INDEX, or what Kubernetes, Cloud Run, a batch "
            "service, Slurm or the CI says.",
            rich_help_panel=_PROCESS,
        ),
    ] = None,
    workers: WorkerCount = None,
    timeout: Timeout = None,
    retries: Retries = 2,
    checkpoint_seconds: CheckpointSeconds = 30.0,
    allow_changed: AllowChanged = False,
    fail_fast: FailFast = None,
    max_failures: MaxFailures = None,
    grace: Grace = 20.0,
    log_level: LogLevel = "info",
    log_format: LogFormat = "auto",
) -> None:
    """Map one shard of the plan in OUT: the command of a pod."""
    settings = _map_settings(
        workers, timeout, retries, checkpoint_seconds, fail_fast, grace, allow_changed=allow_changed
    )
    limit = None if max_failures is None else _limit(max_failures)
    environment = dict(os.environ)

    def body(runtime: Runtime) -> str:
        from job.commands import map_shard  # noqa: PLC0415

        done = map_shard(output, shard_index, settings, limit, runtime, environment)
        state = "was finished already" if done.already else "finished"
        counts = done.counts
        if not counts:
            return f"shard {done.index} was published by another attempt\n"
        return (
            f"shard {done.index} {state}: {counts['files']} files, {counts['rows']} results, "
            f"{counts['failed']} failures\n"
        )

    _execute(body, log_level, log_format, settings.workers)


@app.command("reduce")
def reduce_(
    *,
    output: Output,
    wait: Wait = 0.0,
    max_failures: MaxFailures = None,
    log_level: LogLevel = "info",
    log_format: LogFormat = "auto",
) -> None:
    """Verify the shards in OUT and merge them into result.parquet and its companions."""
    limit = _limit(max_failures)

    def body(runtime: Runtime) -> str:
        from job.commands import reduce_shards  # noqa: PLC0415

        reduced = reduce_shards(output, runtime, wait=wait, max_failures=limit)
        return _summary(reduced.summary, output, current=reduced.current)

    _execute(body, log_level, log_format)


@app.command()
def processors() -> None:
    """List the built-in processors and their options."""
    from job.processors import BUILT_IN  # noqa: PLC0415

    lines = []
    for name, built_in in BUILT_IN.items():
        lines.append(f"{name}\t{built_in.summary}")
        lines += [
            f"  --option {option.name}={option.default}\t{option.type}: {option.help}"
            for option in built_in.options()
        ]
    typer.echo("\n".join(lines))


@app.callback(invoke_without_command=True)
def _job(
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        typer.echo(f"job {__version__}")
        raise typer.Exit


def main() -> int:
    """Run the command line; return the exit code.

    What goes wrong before the log process is there becomes a line of JSON, too, where standard error is no
    terminal.
    """
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        return _tell("error", error.format_message(), UsageError.exit_code)
    except JobError as error:
        return _tell("error", str(error), error.exit_code)
    except KeyboardInterrupt:
        return _tell("warning", "interrupted", 130)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug is told as JSON, too
        text = f"a bug: {type(error).__qualname__}: {error}"
        return _tell("critical", text, JobError.exit_code, exception=traceback.format_exc())
    return code if isinstance(code, int) else 0


def _tell(level: str, text: str, code: int, **keys: Any) -> int:
    if os.isatty(2):
        sys.stderr.write(f"{level}: {text}\n{keys.get('exception', '')}")
    else:
        logs.context.update({"run_id": None, "process": "main", "pid": os.getpid()})
        logs.write_line(logs.event(level, text, exit_code=code, **keys))
    return code


def _execute(body: Callable[[Runtime], str], level: str, log_format: str, workers: int = 0) -> None:
    """Run a command's body with a log process, print what it returns, end with the exit code."""
    from job.pipeline.runtime import LogSettings, Runtime  # noqa: PLC0415
    from job.render import FORMATS  # noqa: PLC0415

    _one_of("--log-level", level, logs.LEVELS)
    _one_of("--log-format", log_format, FORMATS)
    settings = LogSettings(level=level, format=log_format, capture=True)
    with Runtime(settings, workers) as runtime:
        code, text = _run_body(body, runtime)
        if text:
            _print(text, runtime.stdout)
    raise typer.Exit(code)


def _run_body(body: Callable[[Runtime], str], runtime: Runtime) -> tuple[int, str]:
    import structlog  # noqa: PLC0415

    log = structlog.get_logger()
    try:
        return 0, body(runtime)
    except InterruptedRunError as error:
        log.warning(str(error), exit_code=128 + error.signal_number)
        return 128 + error.signal_number, ""
    except JobError as error:
        log.error(str(error), exit_code=error.exit_code)  # noqa: TRY400 - no traceback for a user's mistake
        log.debug("traceback", exc_info=True)
        return error.exit_code, ""
    except KeyboardInterrupt:
        log.warning("interrupted", exit_code=130)
        return 130, ""
    except Exception as error:
        log.critical("a bug", error=f"{type(error).__qualname__}: {error}", exc_info=True, exit_code=70)
        return JobError.exit_code, ""


def _print(text: str, descriptor: int) -> None:
    try:
        os.write(descriptor, text.encode("utf-8", "backslashreplace"))
    except BrokenPipeError:
        return


def _one_of(option: str, value: str, known: Any) -> None:
    if value not in known:
        raise UsageError(f"{option} {value}: it is one of {', '.join(known)}")


def _plan_settings(
    inputs: list[str] | None,
    output: str,
    files_from: str | None,
    null: bool,
    include: list[str] | None,
    exclude: list[str] | None,
    processor: str,
    option: list[str] | None,
    shards: int,
    **flags: bool,
) -> PlanSettings:
    from job.commands import PlanSettings  # noqa: PLC0415

    return PlanSettings(
        inputs=tuple(inputs or ()),
        output=output,
        files_from=files_from,
        null=null,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        processor=processor,
        options=_options(option or []),
        shards=shards,
        stdin=sys.stdin.buffer if files_from == "-" else None,
        **flags,
    )


def _options(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--option {text}: it has the form KEY=VALUE")
        if key in found:
            raise UsageError(f"--option {key} is given twice")
        found[key] = value
    return found


def _map_settings(
    workers: int | None,
    timeout: float | None,
    retries: int,
    checkpoint_seconds: float,
    fail_fast: int | None,
    grace: float,
    *,
    allow_changed: bool,
) -> MapSettings:
    from job.cpus import available  # noqa: PLC0415
    from job.settings import MapSettings  # noqa: PLC0415

    return MapSettings(
        workers=workers or available(),
        timeout=timeout,
        retries=retries,
        checkpoint_seconds=checkpoint_seconds,
        fail_fast=fail_fast,
        allow_changed=allow_changed,
        grace=grace,
    )


def _limit(text: str | None) -> Limit:
    from job.settings import Limit  # noqa: PLC0415

    return Limit.parse(text or "0")


def _summary(summary: Mapping[str, Any], output: str, *, current: bool) -> str:
    result = Path(output) / "result.parquet"
    done = "nothing to do: " if current else ""
    text = (
        f"{done}{summary['files']} files, {summary['results']} results, "
        f"{summary['failures']} failures -> {result}\n"
    )
    if summary["failures"]:
        text += f"failures: {Path(output) / 'failures.parquet'}\n"
    return text


def _planned(plan: Any, *, created: bool, dry_run: bool) -> str:
    what = "would plan" if dry_run else "planned" if created else "planned already"
    return (
        json.dumps(
            {
                what: plan.files,
                "bytes": plan.bytes,
                "shards": plan.shards,
                "plan_id": plan.plan_id,
                "run_id": plan.run_id,
            }
        )
        + "\n"
    )
