"""Versions of the environment that will train, read without importing anything heavy."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from batchplan.errors import SpecError

_ASK = "import importlib.metadata as m; print(m.version('transformers'))"
_SECONDS = 20


def transformers_version(python: Path | None) -> str:
    """Return the version of transformers that ``python`` (or our own interpreter) has.

    Raises:
        SpecError: when it has none, or ``python`` is no interpreter.
    """
    if python is None:
        try:
            return version("transformers")
        except PackageNotFoundError:
            raise SpecError("transformers is not installed beside batchplan.") from None
    try:
        done = subprocess.run(
            [str(python), "-c", _ASK],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SpecError(f"--python {python} does not run: {error}.") from None
    if done.returncode:
        raise SpecError(f"--python {python} is no Python with transformers installed.")
    return done.stdout.strip()
