"""The files of one run: those that a user names, and those that these name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path

from batchplan.checker.beside import Named, named_files
from batchplan.configfile import ConfigFile, Finding, Severity, read
from batchplan.errors import SpecError

Config = str | PathLike[str]
MISSING_FILE = "missing-file"
_MOST_FILES = 20


def flat(configs: Iterable[Config | Iterable[Config]]) -> Iterator[Config]:
    """Yield the names, whether given one by one or as a list."""
    for one in configs:
        if isinstance(one, str | PathLike):
            yield one
        else:
            yield from one


def read_all(names: Sequence[str]) -> tuple[tuple[ConfigFile, ...], tuple[Named, ...]]:
    """Return the files and those that they name, and the names that lead nowhere.

    Raises:
        SpecError: when one cannot be read, or too many belong together.
    """
    files = {_identity(name): read(name) for name in dict.fromkeys(names)}
    missing: list[Named] = []
    waiting = list(files.values())
    while waiting:
        for named in named_files(waiting.pop(0)):
            path = _found(named)
            if path is None:
                missing.append(named)
            elif _identity(path) not in files:
                if len(files) == _MOST_FILES:
                    raise SpecError(f"More than {_MOST_FILES} files belong to {names[0]}.")
                files[_identity(path)] = file = read(path)
                waiting.append(file)
    return tuple(files.values()), tuple(missing)


def missing_files(missing: Iterable[Named]) -> Iterator[Finding]:
    """Yield the error that a named file is not there, at the key that names it."""
    for named in missing:
        yield Finding(
            code=MISSING_FILE,
            severity=Severity.ERROR,
            text=f"{named.name} is neither beside {named.by.name} nor here.",
            fix="Write it, or name the file that is meant.",
            file=named.by.name,
            line=named.by.line(*named.path),
            key=".".join(map(str, named.path)),
        )


def is_there(path: Path) -> bool:
    """Whether a path leads anywhere: a config's word may be too long for one, or hold a NUL."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _identity(path: str | Path) -> str:
    return os.path.realpath(path)  # a loop of links is told when it is opened


def _found(named: Named) -> str | None:
    """Return the path of a named file: beside the file that names it, or from here."""
    for folder in (Path(named.by.name).parent, Path()):
        path = folder / named.name
        if is_there(path) and path.is_file():
            return str(path)
    return None
