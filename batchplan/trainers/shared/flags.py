"""Flags of a launch command, read as the keys of a config file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from batchplan.configfile import ConfigFile, Format, Path
from batchplan.trainers.keymap import path_of

_EXPONENT = re.compile(r"[+-]?\d+\.?\d*e[+-]?\d+", re.IGNORECASE)


def flags_of(files: Iterable[ConfigFile], word: str) -> Iterator[ConfigFile]:
    """Yield the flags of every launch command that has ``word`` in it.

    ``--training.seq-len`` becomes the key ``training.seq_len``; entries keep their whole paths.
    Unlike YAML's, a flag's ``2e-5`` is a number: the trainer knows its type.
    """
    for file in files:
        if file.format is Format.SHELL and word in words_of(file):
            entries = {
                (*_path(str(path[1])), *path[2:]): replace(entry, value=_number(entry.value))
                for path, entry in file.entries.items()
                if path[0] == "flags" and len(path) > 1
            }
            yield replace(file, data={}, entries=entries, repeated=())


def words_of(file: ConfigFile) -> list[str]:
    """Return the words of a launch command that are no flags."""
    return [str(entry.value) for path, entry in file.entries.items() if path[:1] == ("program",)]


def _path(flag: str) -> Path:
    return path_of(flag.lstrip("-").replace("-", "_"))


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value
