"""All that the rules may look at: files, what they say, and what the trainer makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from batchplan.checker.reconstruct import Run
from batchplan.checker.roles import Table, list_for
from batchplan.configfile import ConfigFile, Entry, Format, Path
from batchplan.sources.trainer_keys import TrainerKeys
from batchplan.spec import Gpu
from batchplan.trainers.reading import Reading

Release = tuple[int, ...]
KeysOf = Callable[[str], TrainerKeys]
"""From the name of a trainer to its keys."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One run as its files describe it."""

    trainer: str
    files: tuple[ConfigFile, ...]
    """The main file first."""
    roles: Mapping[str, str]
    """By the name of a file: what it is to the trainer."""
    reading: Reading
    run: Run
    versions: Mapping[str, str]
    """Releases that are taken, the newest that was read where none is installed."""
    keys_of: KeysOf
    """The keys of a trainer's release."""
    gpu: Gpu | None = None
    num_params: int | None = None
    asked_devices: int | None = None
    asked_trainer: str | None = None
    """What the user says, beside what the files say."""

    def is_on(self, *trainers: str) -> bool:
        """Whether the run is one of these trainers'."""
        return self.trainer in trainers

    def value(self, option: str) -> Any:
        """Return a value of the run, from its files or as the trainer does by itself."""
        return self.run.values.get(option)

    def says(self, option: str) -> bool:
        """Whether a file says it."""
        return self.reading.of(option) is not None

    def release(self, package: str) -> Release:
        """Return the release of a package as numbers, such as ``(5, 23, 0)``."""
        parts = self.versions.get(package, "").split(".")
        return tuple(int(part) for part in parts if part.isdigit()) or (10**6,)

    def of_role(self, *roles: str) -> Iterator[ConfigFile]:
        """Yield the files that play one of these roles."""
        for file in self.files:
            if self.roles.get(file.name) in roles:
                yield file

    def keys_for(self, table: Table, file: ConfigFile) -> tuple[TrainerKeys, str]:
        """Return the keys of a table's trainer, and the name of the list that a file goes by."""
        keys = self.keys_of(table.trainer)
        place = (table, file.name)
        if place not in self._lists:
            self._lists[place] = list_for(table, keys, file)
        return keys, self._lists[place]

    def entries(self, *names: str) -> Iterator[tuple[ConfigFile, Entry]]:
        """Yield every key of these names in any file: at the top, under a call, or as a flag."""
        for name in names:
            yield from self._by_name.get(name, ())

    def first(self, *names: str) -> tuple[ConfigFile, Entry] | None:
        """Return the first of ``entries``, or None."""
        return next(self.entries(*names), None)

    def said(self, *names: str) -> Any:
        """Return the value of the first of ``entries``, or None."""
        found = self.first(*names)
        return None if found is None else found[1].value

    def place(self, *names: str) -> tuple[ConfigFile, Path]:
        """Return where the first of ``names`` stands, or where it would in the main file."""
        found = self.first(*names)
        if found is None:
            return self.files[0], tuple(names[0].split("."))
        return found[0], found[1].path

    @cached_property
    def _lists(self) -> dict[tuple[Table, str], str]:
        return {}

    @cached_property
    def _by_name(self) -> dict[str, list[tuple[ConfigFile, Entry]]]:
        found: dict[str, list[tuple[ConfigFile, Entry]]] = {}
        for file in self.files:
            for path, entry in file.entries.items():
                found.setdefault(own_name(file.format, path), []).append((file, entry))
        return found


_BLOCKS = ("from_pretrained", "lora")
"""Calls without a capital in a file of calls."""


def own_name(format_: Format, path: Path) -> str:
    """Return the key itself, without the call or the group of a launch script it stands under.

    >>> own_name(Format.PYTHON, ("SFTConfig", "learning_rate"))
    'learning_rate'
    >>> own_name(Format.SHELL, ("flags", "--packing"))
    'packing'
    >>> own_name(Format.YAML, ("fsdp_config", "version"))
    'fsdp_config.version'
    """
    words = [str(part) for part in path]
    is_call = words[0] in _BLOCKS or words[0][:1].isupper()
    is_inside = format_ in (Format.PYTHON, Format.SHELL) or is_call
    if is_inside and len(words) > 1:
        words = words[1:]
    return ".".join(words).removeprefix("--")
