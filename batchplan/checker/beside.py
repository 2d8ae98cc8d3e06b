"""Files that a config names and that belong to the same run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from batchplan.checker.subject import own_name
from batchplan.configfile import ConfigFile, Path

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
        is_name = isinstance(entry.value, str) and own_name(file.format, path) in _NAMES
        if is_name and PurePath(entry.value).suffix.lower() in _SUFFIXES:
            yield Named(name=entry.value, by=file, path=path)
