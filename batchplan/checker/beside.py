"""Files that a config names and that belong to the same run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from batchplan.checker.subject import own_name
from batchplan.configfile import ConfigFile, Entry, Format, Path

_NAMES = (
    "deepspeed",
    "fsdp_config",
    "accelerate_config",
    "deepspeed_config_file",
    "deepspeed_config.deepspeed_config_file",
    *("config_file", "config", "deepspeed_config"),  # flags of accelerate, trl and deepspeed
)
_SUFFIXES = (".json", ".yaml", ".yml")
"""Without one it is a name that the trainer ships, such as ``zero2`` or ``fsdp2``."""
_PROGRAM_SUFFIXES = (".yaml", ".yml")
"""Of words of a launch command that are configs; JSON may be data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A file that another one names."""

    name: str
    """As it is written."""
    by: ConfigFile
    path: Path
    """The key that names it."""


def named_files(file: ConfigFile) -> Iterator[Named]:
    """Yield the config files that a file names, in the order of its text."""
    for path, entry in file.entries.items():
        if names_a_file(file, path, entry):
            yield Named(name=entry.value, by=file, path=path)


def names_a_file(file: ConfigFile, path: Path, entry: Entry) -> bool:
    """Whether a key, or a word of a launch command, names a config file."""
    if not isinstance(entry.value, str):
        return False
    if file.format is Format.SHELL and path[0] == "program":
        return PurePath(entry.value).suffix.lower() in _PROGRAM_SUFFIXES
    is_name = own_name(file.format, path) in _NAMES
    return is_name and PurePath(entry.value).suffix.lower() in _SUFFIXES
