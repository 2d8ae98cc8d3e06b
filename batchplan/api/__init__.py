"""What ``import batchplan`` offers: the questions as functions, the answers as typed objects."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchplan.api.comparing import CompareAnswer, compare
    from batchplan.api.estimating import EstimateAnswer, estimate
    from batchplan.api.learning import LearningRateAnswer, learning_rate
    from batchplan.api.measuring import LengthsAnswer, lengths
    from batchplan.api.probe_answer import ProbeAnswer
    from batchplan.api.probing import probe
    from batchplan.api.recommending import RecommendAnswer, recommend
    from batchplan.api.tracing import TraceAnswer, trace

__all__ = [
    "CompareAnswer",
    "EstimateAnswer",
    "LearningRateAnswer",
    "LengthsAnswer",
    "ProbeAnswer",
    "RecommendAnswer",
    "TraceAnswer",
    "compare",
    "estimate",
    "learning_rate",
    "lengths",
    "probe",
    "recommend",
    "trace",
]

_HOME = {
    "CompareAnswer": "comparing",
    "EstimateAnswer": "estimating",
    "LearningRateAnswer": "learning",
    "LengthsAnswer": "measuring",
    "ProbeAnswer": "probe_answer",
    "RecommendAnswer": "recommending",
    "TraceAnswer": "tracing",
    "compare": "comparing",
    "estimate": "estimating",
    "learning_rate": "learning",
    "lengths": "measuring",
    "probe": "probing",
    "recommend": "recommending",
    "trace": "tracing",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562), so that start-up stays short."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
