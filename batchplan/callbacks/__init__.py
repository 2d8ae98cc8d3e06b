"""The noise scale while a model trains: for transformers' Trainer, and for a loop of your own.

One more buffer as large as the gradients is held, and every gradient is read once more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchplan.callbacks.hf_trainer import NoiseScaleCallback
    from batchplan.callbacks.meter import NoiseMeter

__all__ = ["NoiseMeter", "NoiseScaleCallback"]
_HOME = {"NoiseMeter": "meter", "NoiseScaleCallback": "hf_trainer"}


def __getattr__(name: str) -> Any:
    """Import a class when it is first asked for (PEP 562): one needs transformers, one does not."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
