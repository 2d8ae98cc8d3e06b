"""A learning rate as an answer: the value, what goes with it, and how far it may be trusted."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.learning.decay import WeightDecay
from batchplan.learning.start import Base
from batchplan.spec import Caveat


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseCost:
    """What a batch costs against a measured noise scale (McCandlish et al.)."""

    noise_scale: float
    """In the unit of the batch."""
    ratio: float
    """Batch over noise scale."""
    steps_multiplier: float
    """Optimizer steps over the fewest that any batch needs."""
    examples_multiplier: float
    """Tokens over the fewest that any batch needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """A learning rate with its rule and how far it may be trusted."""

    value: float
    rule: str
    """``sqrt`` or ``linear``."""
    valid_range: tuple[float, float]
    """Global batch in sequences, from lowest to highest, that the rule is trusted for."""
    beta2: float | None
    """For Adam only: the half-life in tokens kept from the base."""
    warmup_steps: int | None
    caveats: tuple[Caveat, ...]
    base: Base
    half_life_tokens: float | None = None
    """Tokens after which ``beta2`` forgets half; None without beta2 or a batch in tokens."""
    steps_per_epoch: int | None = None
    """Optimizer steps of one pass over the data; None where its size is not known."""
    weight_decay: WeightDecay | None = None
    """AdamW only, where the batch changes from a given base."""
    noise: NoiseCost | None = None
    """None where nobody measured the noise scale."""
