"""Keys that change memory in a way that nothing here models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from batchplan.configfile import ConfigFile, Finding
from batchplan.trainers.keymap import not_understood, path_of


def unplanned(file: ConfigFile, keys: Iterable[str]) -> Iterator[Finding]:
    """Yield a note for each of ``keys`` that is switched on, or is a degree above 1."""
    for key in keys:
        value = file.get(*path_of(key))
        if value is True or (isinstance(value, int) and value > 1):
            yield not_understood(file, key, value)
