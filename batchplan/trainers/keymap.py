"""A trainer's keys beside our option names, as a table that is written and read alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchplan.configfile import ConfigFile, Finding, Path, Severity
from batchplan.trainers.policies.rows import Value
from batchplan.trainers.reading import Read
from batchplan.trainers.shared.yaml_text import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a trainer's config and the option of ours that it decides."""

    key: str
    """Dotted where it is nested."""
    option: str
    """A field of ``Recipe``, or one of ``BESIDE_RECIPE``."""
    words: Mapping[Any, Any] = field(default_factory=dict)
    """From our values to the trainer's; empty where they are the same."""
    aliases: Mapping[Any, Any] = field(default_factory=dict)
    """Further words of the trainer that are read as one of our values."""
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Options and the values under which the key is written; empty: always."""
    why: str = ""
    """The comment beside it, in which ``{option}`` is a value of the plan."""
    is_written: bool = True
    """Whether the key is written, or only read: an older or a rarer way to say the same."""

    def setting(self, options: Mapping[str, Any]) -> Setting | None:
        """Return what is written for a plan, or None where the key does not belong."""
        if not self.is_written or options.get(self.option) is None:
            return None
        if any(options.get(name) not in values for name, values in self.when.items()):
            return None
        value = options[self.option]
        if self.words:
            if value not in self.words:
                return None
            value = self.words[value]
        return Setting(self.key, value, self.why.format_map(options))

    def read(self, file: ConfigFile) -> Read | Finding | None:
        """Return what a file says under this key; a finding where the word is not known."""
        path = path_of(self.key)
        written = file.get(*path)
        if written is None:
            return None
        value = written
        if self.words or self.aliases:
            meanings = {_hashable(theirs): ours for ours, theirs in self.words.items()}
            meanings |= {_hashable(theirs): ours for theirs, ours in self.aliases.items()}
            if _hashable(written) not in meanings:
                return not_understood(file, self.key, written)
            value = meanings[_hashable(written)]
        return read_at(file, self.option, value, *path)


def path_of(key: str) -> Path:
    """Return the path that a dotted key stands for; numbers are positions.

    >>> path_of("betas.1")
    ('betas', 1)
    """
    return tuple(int(name) if name.isdigit() else name for name in key.split("."))


def read_at(file: ConfigFile, option: str, value: Value, *path: str | int) -> Read:
    """Return that a file says ``value`` of an option under a path."""
    entry = file.entries.get(path)
    return Read(
        option=option,
        value=value,
        key=".".join(map(str, path)) if entry is None else entry.dotted,
        file=file.name,
        line=file.line(*path),
    )


def written(keys: Iterable[Key], options: Mapping[str, Any]) -> Iterator[Setting]:
    """Yield what a table of keys writes for the options of a plan."""
    for key in keys:
        setting = key.setting(options)
        if setting is not None:
            yield setting


def read(keys: Iterable[Key], file: ConfigFile) -> tuple[list[Read], list[Finding]]:
    """Return what a file says under a table of keys, and the words that nobody knows."""
    found = [key.read(file) for key in keys]
    reads = [one for one in found if isinstance(one, Read)]
    return reads, [one for one in found if isinstance(one, Finding)]


def not_understood(file: ConfigFile, key: str, value: object) -> Finding:
    """Return the note that a value was left out, because it means nothing that is planned with."""
    return Finding(
        code="value-not-modelled",
        severity=Severity.NOTE,
        text=f"{key}: {value!r} is not something that memory is known for; it was left out.",
        file=file.name,
        line=file.line(*path_of(key)),
        key=key,
    )


def _hashable(value: object) -> object:
    """Return a value that tells 1 from True, and that a mapping takes."""
    return (type(value).__name__, str(value))
