"""Where answers go: stdout, once and whole; progress and warnings go to stderr."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from batchplan.errors import BatchplanError, SpecError

STEM = "plan"
"""Name of a config's files where only their folder was given."""
_SAME_SUFFIX = {".yaml": (".yml",)}
WARNED = frozenset({"seq-len-beyond-model"})
"""Caveats that are also said on stderr, where a script's user sees them."""


def deliver(
    document: Mapping[str, Any], *, as_json: bool, show: Callable[[IO[str]], None], code: int
) -> int:
    """Print an answer and return its exit code, also when nobody reads it to the end.

    Raises:
        BatchplanError: when stdout cannot be written.
    """
    try:
        if as_json:
            from batchplan.render.json import to_json

            sys.stdout.write(to_json(document))
        else:
            show(sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
    except OSError as error:
        silence_stdout()
        raise BatchplanError(f"Cannot write the answer: {error.strerror or error}.") from None
    return code


def silence_stdout() -> None:
    """Send what is still buffered for a closed stdout nowhere, so that exit stays quiet."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def refuse_unwritable(path: Path | None) -> None:
    """Refuse a file that cannot be written, before any work is done for it.

    Raises:
        SpecError: as ``_target`` does.
    """
    if path is not None:
        _target(path)


def main_file(path: Path, suffix: str) -> Path:
    """Return the main file of a config: the file ``path`` names, or one in that folder.

    A name with a suffix is a file, any other a folder, which need not be there yet.

    Raises:
        SpecError: when the name has another suffix than the config, or cannot be written.
    """
    kinds = (suffix, *_SAME_SUFFIX.get(suffix, ()))
    if path.is_dir() or not path.suffix:
        refuse_unwritable(path / f"{STEM}{suffix}" if path.is_dir() else path)
        return path / f"{STEM}{suffix}"
    if path.suffix.lower() not in kinds:
        raise SpecError(
            f"Cannot write {path}: the config is a {suffix} file. Name one, or a folder."
        )
    refuse_unwritable(path)
    return path


def _target(path: Path) -> Path:
    """Return the file that is written for ``path``: where its links lead.

    Raises:
        SpecError: when that is something else than a file, or its folder is missing or closed.
    """
    try:
        mode = path.stat().st_mode
        target = path.resolve()
    except FileNotFoundError:
        mode, target = None, path.resolve()
    except OSError as error:
        raise SpecError(f"Cannot write {path}: {error.strerror or error}.") from None
    if mode is not None and not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise SpecError(f"Cannot write {path}: it is {what}. Name a file.")
    if not target.parent.is_dir():
        raise SpecError(f"Cannot write {path}: there is no folder {target.parent}.")
    if not os.access(target.parent, os.W_OK):
        raise SpecError(f"Cannot write {path}: no permission in {target.parent}.")
    return target


def write_files(files: Iterable[tuple[Path, str]]) -> None:
    """Write text files, each whole or not at all: to a temporary file first, then renamed.

    All temporary files are written before the first is renamed. Links are kept: what they lead to
    is written.

    Raises:
        SpecError: when one cannot be written.
    """
    staged: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, text in files:
            target = _target(path)
            staged.append((_stage(target, text), target))
        for temporary, path in staged:
            temporary.replace(path)
    except OSError as error:
        raise SpecError(f"Cannot write {path}: {error.strerror or error}.") from None
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


def _stage(path: Path, text: str) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


class Progress:
    """One changing line on stderr while a first trace runs; nothing unless it is a terminal."""

    _FRAMES = "|/-\\"

    def __init__(self, *, quiet: bool) -> None:
        self._is_shown = not quiet and sys.stderr.isatty()
        self._count = 0

    def __call__(self, text: str) -> None:
        """Show what is being done."""
        if self._is_shown:
            frame = self._FRAMES[self._count % len(self._FRAMES)]
            self._count += 1
            print(f"\r\x1b[2K{frame} {text}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown and self._count:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def warn(caveats: Iterable[Mapping[str, Any]], *, quiet: bool) -> None:
    """Say the caveats that change what the question was."""
    if quiet:
        return
    for caveat in caveats:
        if caveat["code"] in WARNED:
            print(f"warning: {caveat['text']}", file=sys.stderr)
