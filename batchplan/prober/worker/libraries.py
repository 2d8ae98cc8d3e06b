"""Libraries that only some recipes need."""

from __future__ import annotations

import importlib
from typing import Any

from batchplan.tracer.worker.built import WorkerError


def need(module: str, *, what: str, package: str) -> Any:
    """Return a module that ``what`` needs, from the package of that name.

    Raises:
        WorkerError: when it is not installed, with how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise WorkerError(
            f"{what} needs {package}, which this environment does not have "
            f"({type(error).__name__}): pip install -U {package}."
        ) from error
