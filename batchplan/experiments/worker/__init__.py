"""Runs in the environment that will train: gradients of the user's model, at fixed parameters.

Loaded by path, beside the tracer's and the prober's workers, whose modules build the model and
report. Depends on torch and transformers, and on peft where the recipe does. Python 3.9 or later.
"""

from __future__ import annotations

from pathlib import Path


def window_file(folder: Path, number: int) -> Path:
    """Return where the parent puts a window of rows, for every rank to read."""
    return folder / f"window-{number}.json"
