"""What a batch costs at a noise scale, at the estimate and at both ends of its interval.

``E / E_min = 1 + B / B_noise`` examples and ``S / S_min = 1 + B_noise / B`` steps to a given loss.
Source: McCandlish et al. 2018 (arXiv 1812.06162), equation 2.7. Holds where the noise scale stands
for the critical batch, which it does not exactly: Merrill et al. 2025 (arXiv 2505.23971) measured
both, and they differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from batchplan.learning.noise.fieller import Ratio
from batchplan.learning.scaling import examples_multiplier, steps_multiplier


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A value with what its interval makes of it; None where there is none."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCost:
    """A batch against a noise scale."""

    batch: float
    """In the unit of the noise scale."""
    ratio: Span
    """Batch over noise scale."""
    examples_multiplier: Span
    """Data over the least that reaches a loss."""
    steps_multiplier: Span
    """Steps over the fewest that do."""
    is_beyond: bool
    """Whether the batch is above all noise scales that the data do not reject."""


def batch_cost(batch: float, noise_scale: Ratio) -> BatchCost:
    """Return what a batch costs.

    Args:
        batch: above 0, in the unit of the noise scale.
        noise_scale: with its interval.
    """
    known = noise_scale.value if noise_scale.is_bounded else None
    ratio = Span(
        value=None if not known else batch / known,
        low=batch / noise_scale.high if noise_scale.is_bounded else 0.0,
        high=batch / noise_scale.low if noise_scale.low > 0 else None,
    )
    return BatchCost(
        batch=batch,
        ratio=ratio,
        examples_multiplier=Span(
            value=None if ratio.value is None else examples_multiplier(ratio.value),
            low=1.0 if not ratio.low else examples_multiplier(ratio.low),
            high=None if ratio.high is None else examples_multiplier(ratio.high),
        ),
        steps_multiplier=Span(
            value=None if ratio.value is None else steps_multiplier(ratio.value),
            low=1.0 if ratio.high is None else steps_multiplier(ratio.high),
            high=None if not ratio.low else steps_multiplier(ratio.low),
        ),
        is_beyond=math.isfinite(noise_scale.high) and batch > noise_scale.high,
    )
