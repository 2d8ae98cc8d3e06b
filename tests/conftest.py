"""The same surroundings for every test, whatever the developer's own are."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import older as releases
import pytest
from hypothesis import HealthCheck, settings
from strategies import toy_profiles

# A loaded machine is slow, not wrong; on CI the same examples run every time.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

UNWANTED = (
    *(
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "TRANSFORMERS_OFFLINE",
    ),
    *("BATCHPLAN_DEBUG", "COLUMNS", "LINES", "FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS"),
    "TTY_COMPATIBLE",
)
"""Settings of the developer's shell that would change what a test sees."""

collect_ignore = ["configs"]
"""Files that tests read and never run; `--doctest-modules` would import them."""


def pytest_configure(config: pytest.Config) -> None:
    """Give the run its own caches; xdist's workers inherit them, so a trace is made once."""
    for name in UNWANTED:
        os.environ.pop(name, None)
    if hasattr(config, "workerinput"):
        return
    # A shell starts what runs in the background with Ctrl-C ignored, and every child inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = tempfile.mkdtemp(prefix="batchplan-tests-")
    os.environ["BATCHPLAN_CACHE"] = os.path.join(folder, "profiles")  # noqa: PTH118
    os.environ["BATCHPLAN_DATA"] = os.path.join(folder, "data")  # noqa: PTH118
    os.environ["HF_HOME"] = os.path.join(folder, "huggingface")  # noqa: PTH118
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(scope="session")
def older(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Path]:
    """Interpreters with our torch and older releases in front, each made once."""

    @cache
    def make(packages: tuple[str, ...]) -> Path:
        folder = tmp_path_factory.mktemp("older")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*command, str(folder / "lib"), *packages, *releases.NEEDS], check=True)
        python = folder / "python"
        python.write_text(
            f'#!/bin/sh\nPYTHONPATH={folder}/lib:$PYTHONPATH exec {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
        return python

    return make


@pytest.fixture
def toy_model(monkeypatch):
    """Every model behaves as a small hand-made one, so nothing is traced."""
    asked = []

    def profile(*, recipe, seq_len, **more):
        asked.append({"recipe": recipe, "seq_len": seq_len, **more})
        return toy_profiles(recipe, seq_len)

    monkeypatch.setattr("batchplan.api.profiles.activation_profile", profile)
    profile.asked = asked
    return profile
