"""The outside world turned into specs: GPUs, models, local devices, published runs.

Nothing here imports torch, transformers or the Hub's client before it has to.
``local_gpu`` and ``profiles_dir`` are imported from their own modules, whose names they share.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchplan.sources.config_check import check_config
    from batchplan.sources.gpus import GpuRow, find_gpu, larger_gpus, load_gpus, match_device_name
    from batchplan.sources.models import CatalogModel, ResolvedModel, list_models, resolve_model
    from batchplan.sources.runs import load_runs

__all__ = [
    "CatalogModel",
    "GpuRow",
    "ResolvedModel",
    "check_config",
    "find_gpu",
    "larger_gpus",
    "list_models",
    "load_gpus",
    "load_runs",
    "match_device_name",
    "resolve_model",
]

_HOME = {
    "CatalogModel": "models",
    "GpuRow": "gpus",
    "ResolvedModel": "models",
    "check_config": "config_check",
    "find_gpu": "gpus",
    "list_models": "models",
    "larger_gpus": "gpus",
    "load_gpus": "gpus",
    "load_runs": "runs",
    "match_device_name": "gpus",
    "resolve_model": "models",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562), so that start-up stays short."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
