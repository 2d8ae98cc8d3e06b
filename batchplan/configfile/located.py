"""A config file as it was written: its values, and where in the text each of them stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

Path = tuple[str | int, ...]
"""Keys and list positions from the outermost in, such as ``("fsdp_config", "version")``."""


class Format(StrEnum):
    """How a config file is written."""

    YAML = "yaml"
    JSON = "json"
    PYTHON = "python"
    """Calls with literal arguments, read and never run."""
    SHELL = "shell"
    """A launch script: environment and flags, read and never run."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` to before ``end`` of the text; line and column count from 1."""

    start: int
    end: int
    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One key of a config file and its value."""

    path: Path
    value: Any
    """Plain Python, as the trainer's own loader sees it; ``UNKNOWN`` where it is no literal."""
    key: Span | None
    """The key as written; None for the items of a list and for positional arguments."""
    written: Span
    """The value as written."""

    @property
    def dotted(self) -> str:
        """The path in one word, such as ``fsdp_config.version``."""
        return ".".join(map(str, self.path))


class _Unknown:
    """The value of an expression that only running the file would tell."""

    def __repr__(self) -> str:
        return "UNKNOWN"

    def __reduce__(self) -> str:
        return "UNKNOWN"  # so that a copy is the very same


UNKNOWN = _Unknown()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """A config file that was parsed.

    Python: every call is a mapping under the name of what is called, as written, unless it has
    nothing but positional arguments of unknown value: ``("TrainingArguments", "learning_rate")``,
    and ``("FastLanguageModel.from_pretrained", 0)`` for the first positional argument. A second
    call of that name is ``TrainingArguments#2``; a key ``**`` of unknown value stands for keywords
    that reading does not tell. ``os.environ["X"] = "1"`` is ``("os.environ", "X")``.

    Shell: ``("env", "NPROC_PER_NODE")`` for an assignment or export, ``("program", 0)`` and on for
    the words of the launch command, ``("flags", "--training.seq_len")`` for its flags; a flag of
    several words is a list, one of none is True.
    """

    name: str
    """Path as the user gave it, or the name of an emitted file."""
    format: Format
    text: str
    data: Mapping[str, Any]
    """All values, nested."""
    entries: Mapping[Path, Entry] = field(repr=False)
    """Every key at every depth, in the order of the text; of a repeated key the last."""
    repeated: tuple[Entry, ...] = ()
    """Earlier occurrences of keys that a later one overrides."""

    def get(self, *path: str | int, default: Any = None) -> Any:
        """Return a value, or ``default`` where there is none or it is no literal."""
        entry = self.entries.get(path)
        return default if entry is None or entry.value is UNKNOWN else entry.value

    def line(self, *path: str | int) -> int | None:
        """Return the line of a key, of its nearest enclosing key where it is absent, or None."""
        for end in range(len(path), 0, -1):
            entry = self.entries.get(path[:end])
            if entry is not None:
                return (entry.key or entry.written).line
        return None

    def under(self, *prefix: str | int) -> ConfigFile:
        """Return the part of the file below ``prefix``; its entries keep their whole paths.

        The part below an absent prefix is empty.
        """
        size = len(prefix)
        inner = {
            path[size:]: entry
            for path, entry in self.entries.items()
            if len(path) > size and path[:size] == prefix
        }
        data = {path[0]: entry.value for path, entry in inner.items() if len(path) == 1}
        return replace(
            self,
            data={str(name): value for name, value in data.items()},
            entries=inner,
            repeated=tuple(entry for entry in self.repeated if entry.path[:size] == prefix),
        )

    def __contains__(self, path: object) -> bool:
        """Whether there is such a path, given as a tuple or, at the top, as one key."""
        return (path if isinstance(path, tuple) else (path,)) in self.entries
