"""What is computed for one file. Processors know nothing of the pipeline."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a built-in processor, as ``--option NAME=VALUE`` takes it."""

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A processor that comes with the package.

    Attributes:
        module: Where it is; imported when it is used.
        attribute: Its class there.
        summary: What it computes, in one line.
    """

    module: str
    attribute: str
    summary: str

    def load(self) -> Any:
        """Return the class."""
        return getattr(import_module(self.module), self.attribute)

    def options(self) -> list[Option]:
        """Return its options: the keyword arguments of its class, described in the class's docstring."""
        found = self.load()
        texts = _argument_texts(inspect.getdoc(found.__init__) or "")
        return [
            Option(name, str(argument.annotation), _shown(argument.default), texts.get(name, ""))
            for name, argument in inspect.signature(found).parameters.items()
        ]


BUILT_IN: Final = {
    "text": BuiltIn(
        "job.processors.text",
        "Text",
        "bytes, lines, words, characters, longest line, encoding and line ends; sha256",
    ),
    "digest": BuiltIn("job.processors.digest", "Digest", "bytes, sha256 and xxh3_128"),
}


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def _argument_texts(doc: str) -> dict[str, str]:
    """Return what a docstring's ``Args:`` says of each argument."""
    _, _, arguments = doc.partition("Args:\n")
    pairs = (line.strip().partition(": ") for line in arguments.splitlines())
    return {name: text for name, colon, text in pairs if colon}
