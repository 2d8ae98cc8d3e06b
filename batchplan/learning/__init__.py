"""Learning rate against batch size: the published rules and where they hold."""

from batchplan.learning.advice import Base, LearningRate, advise, reference_runs
from batchplan.learning.runs import PublishedRun
from batchplan.learning.scaling import (
    AdamSettings,
    beta2_for_half_life,
    examples_multiplier,
    half_life_tokens,
    saturating_rate,
    scale_adam,
    scale_linear,
    scale_sqrt,
    shift_beta2,
    steps_multiplier,
    surge_rate,
    width_rate,
)

__all__ = [
    "AdamSettings",
    "Base",
    "LearningRate",
    "PublishedRun",
    "advise",
    "beta2_for_half_life",
    "examples_multiplier",
    "half_life_tokens",
    "reference_runs",
    "saturating_rate",
    "scale_adam",
    "scale_linear",
    "scale_sqrt",
    "shift_beta2",
    "steps_multiplier",
    "surge_rate",
    "width_rate",
]
