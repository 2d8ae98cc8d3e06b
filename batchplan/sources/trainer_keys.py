"""Which keys a trainer's files may have, as its release was asked for them.

The snapshots in ``profiles/trainers/`` are dumped from the installed libraries by
``python -m benchmarks.trainer_keys``; ``profiles/trainers/README.md`` says what they hold. What a
trainer checks beyond names and types (one key excluding another) is left out.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from batchplan.errors import BatchplanError, SpecError
from batchplan.sources.profiles_dir import profile_file

TRAINERS = (
    "accelerate",
    "axolotl",
    "deepspeed",
    "hf-trainer",
    "lightning",
    "litgpt",
    "llamafactory",
    "ms-swift",
    "torchtitan",
    "torchtune",
    "trl",
    "unsloth",
)
"""Trainers that have a snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What is known of one key."""

    types: frozenset[str]
    """One or more of bool, int, float, str, list, dict and any."""
    choices: tuple[Any, ...] = ()
    """Values that it may have; empty when the set is open."""
    plugin: str | None = None
    """Module whose plugin must be listed for the key to count (Axolotl)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """A key that older releases knew."""

    to: str | None
    """What says the same now; None when nothing does."""
    removed_in: str | None
    """First release of ``package`` looked at that refuses or ignores it; None while it is taken."""
    package: str
    """The trainer's own, or the library below it that took the key away."""
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKeys:
    """Keys of one kind of file."""

    keys: Mapping[str, Key]
    """By dotted name; a section is there too, as a dict."""
    open: frozenset[str]
    """Sections in which the trainer takes any key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerKeys:
    """One release of a trainer: its files and their keys."""

    trainer: str
    package: str
    version: str
    supported: str
    """Releases that the names batchplan writes are right for, as a version specifier."""
    files: Mapping[str, FileKeys]
    """By role; ``config`` is the main file where there is one."""
    renamed: Mapping[str, Renamed]
    since: Mapping[str, str]
    """First release looked at that knows the key, for those newer than ``supported`` begins."""

    def is_known(self, role: str, dotted: str) -> bool:
        """Return whether the file may have that key: it is listed, or lies in an open section.

        Raises:
            BatchplanError: for a role that the trainer does not have.
        """
        file = self.file(role)
        return dotted in file.keys or any(one in file.open for one in _above(dotted))

    def key(self, role: str, dotted: str) -> Key | None:
        """Return what is known of a listed key; None for every other.

        Raises:
            BatchplanError: for a role that the trainer does not have.
        """
        return self.file(role).keys.get(dotted)

    def nearest(self, role: str, dotted: str) -> str | None:
        """Return the key of that file which a misspelt one was probably meant to be.

        A key that was renamed gives its new name. Others are compared within their own section
        first, because the same word in another section means something else.

        Raises:
            BatchplanError: for a role that the trainer does not have.
        """
        file = self.file(role)
        renamed = self.renamed.get(dotted)
        if renamed is not None and renamed.to in file.keys:
            return renamed.to
        section = dotted.rpartition(".")[0]
        beside = [one for one in file.keys if one.rpartition(".")[0] == section]
        for candidates in (beside, list(file.keys)):
            found = difflib.get_close_matches(dotted, candidates, n=1, cutoff=0.75)
            if found:
                return found[0]
        return None

    def file(self, role: str) -> FileKeys:
        """Return the keys of one kind of file.

        Raises:
            BatchplanError: for a role that the trainer does not have.
        """
        found = self.files.get(role)
        if found is None:
            known = ", ".join(self.files)
            raise BatchplanError(f"{self.trainer} has no file {role!r}; it has {known}.")
        return found


@cache
def load_trainer_keys(trainer: str) -> TrainerKeys:
    """Return the snapshot of a trainer.

    Raises:
        SpecError: for a trainer that has none.
        BatchplanError: when the file is missing or broken.
    """
    if trainer not in TRAINERS:
        known = ", ".join(TRAINERS)
        raise SpecError(f"trainer {trainer!r} is not known; known are {known}.")
    path = profile_file("trainers", f"{trainer}.json")
    try:
        return _trainer_keys(json.loads(path.read_text(encoding="utf-8")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BatchplanError(f"{path} is broken: {error!r}") from error


def _trainer_keys(document: dict[str, Any]) -> TrainerKeys:
    return TrainerKeys(
        trainer=document["trainer"],
        package=document["package"],
        version=document["version"],
        supported=document["supported"],
        files=MappingProxyType({role: _file(file) for role, file in document["files"].items()}),
        renamed=MappingProxyType(
            {
                old: Renamed(**{"package": document["package"]} | row)
                for old, row in document["renamed"].items()
            }
        ),
        since=MappingProxyType(dict(document["since"])),
    )


def _file(document: dict[str, Any]) -> FileKeys:
    keys = {name: _key(row) for name, row in document["keys"].items()}
    return FileKeys(keys=MappingProxyType(keys), open=frozenset(document["open"]))


def _key(row: dict[str, Any]) -> Key:
    return Key(
        types=frozenset(row["type"].split("|")),
        choices=tuple(row.get("choices", ())),
        plugin=row.get("plugin"),
    )


def _above(dotted: str) -> list[str]:
    """Return the sections that a key lies in, nearest first."""
    found = []
    while dotted := dotted.rpartition(".")[0]:
        found.append(dotted)
    return found
