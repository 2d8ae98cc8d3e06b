"""Library versions that rows were measured with, installed beside our torch when first needed.

The trace worker runs in any interpreter that has torch and transformers. An environment here is a
folder of pure-Python wheels of the old versions and a wrapper script ``python`` that puts it before
our own packages; so old transformers run on our torch. ``BATCHPLAN_ENVIRONMENTS`` moves the folder.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

_BESIDE = ("requests", "urllib3", "charset-normalizer", "certifi", "idna")
"""What old packages import and ours do not bring in a version that they take."""
_HUB = "huggingface_hub<1.0"  # what transformers 4 takes

_LITGPT = (
    "litgpt==0.5.13",
    *("lightning", "lightning-utilities", "pytorch-lightning", "torchmetrics", "jsonargparse"),
)

VERSION_ONLY = "bitsandbytes"
"""A package that is asked for its version alone, so its metadata is all that is made."""

ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    # tokenizers is pinned by each release's own setup.py.
    "transformers-4.45": ("transformers==4.45.2", _HUB, "tokenizers==0.20.3", "peft==0.13.2"),
    "transformers-4.45-bitsandbytes-0.41": (
        *("transformers==4.45.2", _HUB, "tokenizers==0.20.3", "peft==0.13.2"),
        "bitsandbytes==0.41.1",
    ),
    "transformers-4.48": ("transformers==4.48.1", _HUB, "tokenizers==0.21.0", "peft==0.13.2"),
    "transformers-4.55": ("transformers==4.55.4", _HUB, "tokenizers==0.21.4", "peft==0.17.1"),
    "litgpt-0.5": _LITGPT,
    "litgpt-0.5-bitsandbytes-0.41": (*_LITGPT, "bitsandbytes==0.41.1"),
}


class InstallError(RuntimeError):
    """An environment that could not be installed."""


def environments_dir() -> Path:
    """Return where environments lie."""
    override = os.environ.get("BATCHPLAN_ENVIRONMENTS")
    return Path(override) if override else Path.home() / ".cache" / "batchplan" / "environments"


def interpreter(name: str) -> Path:
    """Return the interpreter of an environment, which is installed when it is not there yet.

    Raises:
        InstallError: when pip cannot install it.
    """
    folder = environments_dir() / name
    wrapper = folder / "python"
    if not wrapper.is_file():
        _install(folder, ENVIRONMENTS[name])
    return wrapper


def _install(folder: Path, requirements: tuple[str, ...]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Built aside and moved into place, so that an interrupted installation is never used.
    with tempfile.TemporaryDirectory(dir=folder.parent) as building:
        target = Path(building) / "environment"
        packages = target / "packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--target", str(packages), *_BESIDE]
        command += [one for one in requirements if not one.startswith(VERSION_ONLY)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InstallError(f"pip could not install {folder.name}: {done.stderr[-400:]}")
        for one in requirements:
            if one.startswith(VERSION_ONLY):
                _write_version(packages, *one.split("=="))
        script = target / "python"
        path = shlex.quote(str(folder / "packages"))
        script.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {shlex.quote(sys.executable)} "$@"\n')
        script.chmod(0o755)
        target.rename(folder)


def _write_version(packages: Path, name: str, version: str) -> None:
    folder = packages / f"{name}-{version}.dist-info"
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")
