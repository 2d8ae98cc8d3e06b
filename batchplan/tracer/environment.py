"""The interpreter that will train, and the versions of what runs the model in it."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

from batchplan.errors import SpecError, TraceError

MODEL_CODE = ("torch", "transformers", "peft", "litgpt", "bitsandbytes")
TRAINERS = (
    "accelerate",
    "axolotl",
    "deepspeed",
    "lightning",
    "llamafactory",
    "ms-swift",
    "torchtitan",
    "torchtune",
    "trl",
    "unsloth",
)
PACKAGES = (*MODEL_CODE, *TRAINERS)
"""What runs the model, and what decides how it is trained."""
_QUERY_SECONDS = 60
_QUERY = f"""
import importlib.metadata as m, json
found = {{}}
for name in {PACKAGES!r}:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def library_versions(python: Path | None, library: str = "transformers") -> dict[str, str]:
    """Return the installed versions of ``PACKAGES`` in an environment, ours when None.

    Nothing is imported to find out, and each environment is asked once.

    Raises:
        SpecError: when ``python`` cannot be run.
        TraceError: when torch or ``library``, whose models are traced, is not installed there.
    """
    versions = dict(_installed(python))
    missing = [name for name in ("torch", library) if name not in versions]
    if missing:
        raise TraceError(
            f"{python or sys.executable} has no {' and no '.join(missing)}. Install it there, or "
            "name the interpreter that will train with --python."
        )
    return versions


def has_package(python: Path | None, name: str) -> bool:
    """Return whether an environment, ours when None, has one of ``PACKAGES``.

    Raises:
        SpecError: when ``python`` cannot be run.
    """
    return name in _installed(python)


def _installed(python: Path | None) -> dict[str, str]:
    return _own_versions() if python is None else _versions_of(python)


@cache
def _own_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def _versions_of(python: Path) -> dict[str, str]:
    try:
        done = subprocess.run(
            [str(python), "-c", _QUERY],
            capture_output=True,
            text=True,
            timeout=_QUERY_SECONDS,
            check=True,
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise SpecError(f"--python {python} is not a Python that runs: {error}") from error
    return {str(name): str(version) for name, version in found.items()}
