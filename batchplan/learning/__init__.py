"""Learning rate against batch size: the published rules and where they hold."""

from batchplan.learning.advice import advise, rate_for
from batchplan.learning.certainty import Certainty
from batchplan.learning.change import Change
from batchplan.learning.decay import WeightDecay, keep_time_scale, time_scale_tokens
from batchplan.learning.epoch import count_steps, few_steps, within_epoch
from batchplan.learning.laws import (
    deepseek_batch,
    deepseek_compute,
    deepseek_rate,
    kaplan_critical,
    power_lines_critical,
    power_lines_optimal,
    step_law_batch,
    step_law_rate,
)
from batchplan.learning.rate import LearningRate, NoiseCost
from batchplan.learning.references import (
    CRITICAL,
    OPTIMAL,
    BatchReferences,
    ReferenceRow,
    batch_references,
)
from batchplan.learning.rules import Rule, RuleValue, Settings, compare
from batchplan.learning.runs import PublishedRun, comparable_runs, reference_runs
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
from batchplan.learning.smaller import smaller_batch_note
from batchplan.learning.start import Base

__all__ = [
    "CRITICAL",
    "OPTIMAL",
    "AdamSettings",
    "Base",
    "BatchReferences",
    "Certainty",
    "Change",
    "LearningRate",
    "NoiseCost",
    "PublishedRun",
    "ReferenceRow",
    "Rule",
    "RuleValue",
    "Settings",
    "WeightDecay",
    "advise",
    "batch_references",
    "beta2_for_half_life",
    "comparable_runs",
    "compare",
    "count_steps",
    "deepseek_batch",
    "deepseek_compute",
    "deepseek_rate",
    "examples_multiplier",
    "few_steps",
    "half_life_tokens",
    "kaplan_critical",
    "keep_time_scale",
    "power_lines_critical",
    "power_lines_optimal",
    "rate_for",
    "reference_runs",
    "saturating_rate",
    "scale_adam",
    "scale_linear",
    "scale_sqrt",
    "shift_beta2",
    "smaller_batch_note",
    "step_law_batch",
    "step_law_rate",
    "steps_multiplier",
    "surge_rate",
    "time_scale_tokens",
    "width_rate",
    "within_epoch",
]
