"""From ``--processor`` and ``--option`` to something that can be called with a file.

A processor is described once, where the run is planned (`describe`, which runs no code of the user), and loaded
in every worker (`load`).
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pickle
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from job.errors import UsageError
from job.processors import BUILT_IN

_BOOLEANS: Final = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProcessorSpec:
    """A processor as the plan has it.

    Attributes:
        name: A built-in's name, ``package.module:function``, ``/folder/file.py:function``, or
            ``python:function`` of an object that was given from Python and has no name to import it by.
        sha256: Of the bytes of file.py, or of such an object; else None.
        options: Names and values as text, sorted.
        pickled: The object itself (cloudpickle); it never leaves this machine's memory.
    """

    name: str
    sha256: str | None
    options: tuple[tuple[str, str], ...]
    pickled: bytes | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A processor, ready to be used.

    Attributes:
        call: Takes a `job.File`, returns a mapping, a list of mappings, or an Arrow table.
        schema: The `pyarrow.Schema` that it declares, or None.
        setup: To be called once in each worker, or None.
        merge: Makes the rows of ``summary.parquet`` of all results, or None.
    """

    call: Callable[..., Any]
    schema: Any
    setup: Callable[[], Any] | None
    merge: Callable[[Iterator[Any]], Any] | None


def describe(processor: Any, options: Mapping[str, str], base: str) -> ProcessorSpec:
    """Return what the plan says of a processor.

    Args:
        processor: A name, or the object itself.
        options: Its options.
        base: The folder from which a relative ``file.py`` is found.

    Raises:
        UsageError: There is no such built-in or file.
    """
    given = tuple(sorted(options.items()))
    if not isinstance(processor, str):
        return _describe_object(processor, given)
    if processor in BUILT_IN:
        return ProcessorSpec(processor, None, given)
    place, colon, attribute = processor.rpartition(":")
    if not colon or not attribute or not place:
        raise UsageError(_unknown(processor))
    if not place.endswith(".py"):
        return ProcessorSpec(processor, None, given)
    path = Path(base, place)
    return ProcessorSpec(f"{path}:{attribute}", _sha256_of(path), given)


def load(spec: ProcessorSpec) -> Loaded:
    """Import a processor and give it its options.

    Raises:
        UsageError: It cannot be imported or called with a file, it has changed since the plan, or an option
            is unknown, missing or of the wrong type. ``__cause__`` is what its import raised.
    """
    found = _find(spec)
    if not callable(found):
        raise UsageError(f"processor {spec.name}: it is a {type(found).__name__}, which cannot be called")
    if inspect.isclass(found):
        arguments = _arguments(spec, found, skip=0)
        with _told(spec, "cannot be made"):
            found = found(**arguments)
        if not callable(found):
            raise UsageError(f"processor {spec.name}: its objects have no __call__(self, file)")
        call: Callable[..., Any] = found
    else:
        arguments = _arguments(spec, found, skip=1)
        call = functools.partial(found, **arguments) if arguments else found
    _check_signature(spec, call)
    return Loaded(
        call,
        getattr(found, "schema", None),
        getattr(found, "setup", None),
        getattr(found, "merge", None),
    )


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, BUILT_IN, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(BUILT_IN)};"
    return f"no processor {name}: {hint} your own is package.module:function or file.py:function"


def _describe_object(found: Any, options: tuple[tuple[str, str], ...]) -> ProcessorSpec:
    module = getattr(found, "__module__", None)
    name = getattr(found, "__qualname__", None) or type(found).__qualname__
    if module and module != "__main__" and _attribute(sys.modules.get(module), name) is found:
        return ProcessorSpec(f"{module}:{name}", None, options)
    import cloudpickle  # noqa: PLC0415 - only for objects without a name

    try:
        pickled = cloudpickle.dumps(found)
    except Exception as error:
        raise UsageError(f"processor {name}: it cannot be sent to the workers: {error}") from error
    try:
        identity = inspect.getsource(found).encode()
    except (OSError, TypeError):  # typed in, or no function: the pickle is the next best
        identity = pickled
    return ProcessorSpec(f"python:{name}", hashlib.sha256(identity).hexdigest(), options, pickled)


def _attribute(owner: Any, name: str) -> Any:
    for part in name.split("."):
        owner = getattr(owner, part, None)
    return owner


def _sha256_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"processor file {path} cannot be read: {error.strerror}") from error


def _find(spec: ProcessorSpec) -> Any:
    if spec.pickled is not None:
        with _told(spec, "cannot be received"):
            return pickle.loads(spec.pickled)
    if spec.name in BUILT_IN:
        return BUILT_IN[spec.name].load()
    place, _, attribute = spec.name.rpartition(":")
    if place == "python":
        raise UsageError(
            f"processor {spec.name} was given from Python, so only job.run can go on with it: "
            "put it into a file and name it file.py:function"
        )
    module = _import_file(spec, Path(place)) if place.endswith(".py") else _import_module(spec, place)
    found = _attribute(module, attribute)
    if found is None:
        names = [name for name in vars(module) if not name.startswith("_")]
        close = difflib.get_close_matches(attribute, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"processor {spec.name}: {place} has no {attribute}{hint}")
    return found


def _import_module(spec: ProcessorSpec, name: str) -> types.ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it
    with _told(spec, "cannot be imported"):
        return importlib.import_module(name)


def _import_file(spec: ProcessorSpec, path: Path) -> types.ModuleType:
    if spec.sha256 is not None and _sha256_of(path) != spec.sha256:
        raise UsageError(
            f"processor {spec.name}: the file has changed since the plan; "
            "restore it, or plan anew with --replan"
        )
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # what stands beside it can be imported, as in a script
    name = f"job_processor_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise UsageError(f"processor file {path} is no Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    with _told(spec, "cannot be imported"):
        found.loader.exec_module(module)
    return module


class _told:  # noqa: N801 - reads as a sentence: with told(spec, "cannot be imported")
    """Turns any exception of user code into one sentence that says where it arose."""

    def __init__(self, spec: ProcessorSpec, what: str) -> None:
        self._spec = spec
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, (UsageError, KeyboardInterrupt)):
            return
        where = ""
        if frames := [
            frame
            for frame in traceback.extract_tb(trace)
            if not frame.filename.startswith("<frozen") and frame.filename != __file__
        ]:
            where = f" ({frames[-1].filename}:{frames[-1].lineno})"
        raise UsageError(
            f"processor {self._spec.name} {self._what}: {type(error).__name__}: {error}{where}"
        ) from error


def _check_signature(spec: ProcessorSpec, call: Callable[..., Any]) -> None:
    try:
        inspect.signature(call).bind(None)
    except ValueError:
        return  # written in C, without a signature
    except TypeError as error:
        raise UsageError(f"processor {spec.name}: it must take one argument, the file: {error}") from error


def _arguments(spec: ProcessorSpec, target: Callable[..., Any], skip: int) -> dict[str, Any]:
    """Return the options as keyword arguments of the types that the target asks for."""
    try:
        parameters = list(inspect.signature(target).parameters.values())[skip:]
    except ValueError:
        parameters = []
    known = {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind in {parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD}
    }
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    hints = _hints(target)
    found = {}
    for name, text in spec.options:
        if name not in known and not takes_any:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise UsageError(f"processor {spec.name} has no option {name}: {there}")
        try:
            found[name] = _converted(text, hints.get(name, str))
        except (ValueError, TypeError) as error:
            raise UsageError(f"processor {spec.name}: option {name}={text}: {error}") from error
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in found:
            raise UsageError(f"processor {spec.name} needs the option {name}: --option {name}=…")
    return found


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # names that only a type checker has
        return {}


def _converted(text: str, wanted: Any) -> Any:
    """Return an option's value as the type that is asked for; what is not known here stays text."""
    origin = typing.get_origin(wanted)
    if origin in {typing.Union, types.UnionType}:
        choices = [choice for choice in typing.get_args(wanted) if choice is not type(None)]
        return _converted(text, choices[0]) if len(choices) == 1 else text
    if origin is typing.Literal:
        literals = typing.get_args(wanted)
        for choice in literals:
            if str(choice) == text:
                return choice
        raise ValueError(f"it is one of {', '.join(map(str, literals))}")
    if wanted is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError("it is true or false")
        return _BOOLEANS[text.lower()]
    if wanted in {int, float, Path}:
        try:
            return wanted(text)
        except ValueError:
            raise ValueError(f"it is no {wanted.__name__}") from None
    return text
