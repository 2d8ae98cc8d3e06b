"""Plan VRAM and batch configuration for transformer training before the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchplan.api import (
        check,
        compare,
        estimate,
        learning_rate,
        lengths,
        noise,
        probe,
        recommend,
        trace,
        verify,
    )

__version__ = "0.1.0"
__all__ = [
    "check",
    "compare",
    "estimate",
    "learning_rate",
    "lengths",
    "noise",
    "probe",
    "recommend",
    "trace",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public function when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from batchplan import api

    return getattr(api, name)
