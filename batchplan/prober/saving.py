"""A new file in the user's data folder: whole or not at all, and never over another."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from batchplan.errors import ProbeError


def public_name(model_id: str) -> str:
    """Return a Hub id, or the last part of a path: the rest may name folders and users.

    >>> public_name("org/model"), public_name("/home/someone/model")
    ('org/model', 'model')
    """
    is_path = model_id.startswith((".", "~")) or Path(model_id).is_absolute()
    return Path(model_id).name if is_path else model_id


def write_new(folder: Path, names: Sequence[str], text: str, *, created: datetime) -> Path:
    """Write one new file, named after when and what, and return its path.

    Raises:
        ProbeError: when it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".writing-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            path = _reserve(folder, (created.strftime("%Y%m%dT%H%M%SZ"), *names))
            try:
                Path(temporary).replace(path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        finally:
            with suppress(FileNotFoundError):
                Path(temporary).unlink()
    except OSError as error:
        raise ProbeError(f"The measurement could not be saved in {folder}: {error}") from error
    return path


def _reserve(folder: Path, names: Sequence[str]) -> Path:
    """Return the path of a new, empty file, which readers skip until it is filled."""
    stem = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") for name in names)[:150]
    for number in count(1):
        path = folder / f"{stem}{f'-{number}' if number > 1 else ''}.json"
        with suppress(FileExistsError):
            path.open("x").close()
            return path
    raise AssertionError("unreachable")  # count() has no end
