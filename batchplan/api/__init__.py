"""What ``import batchplan`` offers: the questions as functions, the answers as typed objects."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchplan.api.check_answer import CheckAnswer
    from batchplan.api.checking import check
    from batchplan.api.comparing import CompareAnswer, compare
    from batchplan.api.estimating import EstimateAnswer, estimate
    from batchplan.api.learning import LearningRateAnswer, learning_rate
    from batchplan.api.measuring import LengthsAnswer, lengths
    from batchplan.api.noise_answer import NoiseAnswer
    from batchplan.api.noising import noise
    from batchplan.api.probe_answer import ProbeAnswer
    from batchplan.api.probing import probe
    from batchplan.api.recommending import RecommendAnswer, recommend
    from batchplan.api.tracing import TraceAnswer, trace
    from batchplan.api.verifying import VerifyAnswer, verify

__all__ = [
    "CheckAnswer",
    "CompareAnswer",
    "EstimateAnswer",
    "LearningRateAnswer",
    "LengthsAnswer",
    "NoiseAnswer",
    "ProbeAnswer",
    "RecommendAnswer",
    "TraceAnswer",
    "VerifyAnswer",
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

_HOME = {
    "CheckAnswer": "check_answer",
    "CompareAnswer": "comparing",
    "EstimateAnswer": "estimating",
    "LearningRateAnswer": "learning",
    "LengthsAnswer": "measuring",
    "NoiseAnswer": "noise_answer",
    "ProbeAnswer": "probe_answer",
    "RecommendAnswer": "recommending",
    "TraceAnswer": "tracing",
    "check": "checking",
    "VerifyAnswer": "verifying",
    "compare": "comparing",
    "estimate": "estimating",
    "learning_rate": "learning",
    "lengths": "measuring",
    "noise": "noising",
    "probe": "probing",
    "recommend": "recommending",
    "trace": "tracing",
    "verify": "verifying",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562), so that start-up stays short."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
