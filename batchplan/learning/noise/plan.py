"""How much must be measured, from what a first measurement found.

For Gaussian gradients and windows of ``B`` tokens out of ``n`` micro-batches, relative to its mean
and for one window, the variance of ``S`` is ``2 / ((n - 1) d_eff)``, and that of ``|G|^2`` is
``n / (n - 1)`` times ``(2 / d_eff) (B_noise / B)^2`` where the noise is the larger part, with
``d_eff = tr(Sigma)^2 / tr(Sigma^2)``. Left out: that factor in a plan, and
``4 c B_noise / B``, which matters only where ``B`` is near ``B_noise``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

RELATIVE_ERROR = 0.2
"""Standard error of ``|G|^2`` over its mean that a measurement aims at: a choice."""
FEWEST_WINDOWS = 50
"""Below this the spread itself is poorly known; 50 to 200 windows are usual."""
MOST_WINDOWS = 200
"""Beyond this a larger window is cheaper: the error falls as 1/B, but as 1/sqrt(windows)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextMeasurement:
    """What to measure next."""

    num_windows: int
    window_tokens: int


def effective_dimensions(
    noises: Sequence[float],
    signals: Sequence[float],
    *,
    num_micro_batches: int,
    window: float,
) -> float | None:
    """Return ``d_eff`` from the spread of ``S`` and of ``|G|^2``; None where there is none to see.

    It is the number of directions in which gradients vary equally that would spread as much. Each
    spread has another part, which makes its figure too small, so the larger one is taken: unequal
    micro-batches spread ``S``, and a clear signal spreads ``|G|^2``.

    Args:
        noises: of windows.
        signals: of the same.
        num_micro_batches: of one window.
        window: its mean size, in the unit of ``S``: target tokens.
    """
    if len(noises) < 2:
        return None
    mean, n = fmean(noises), num_micro_batches
    of_noise, of_signal = variance(noises), variance(signals)
    if mean <= 0 or of_noise <= 0 or of_signal <= 0:
        return None
    pair = 2 * mean * mean / (n - 1)
    return max(pair / of_noise, pair * n / (window * window * of_signal))


def windows_needed(
    *,
    noise_scale: float,
    window: float,
    dimensions: float,
    relative_error: float = RELATIVE_ERROR,
) -> int:
    """Return the windows after which ``|G|^2`` is known to ``relative_error``.

    ``noise_scale`` and ``window`` are in one unit, tokens or sequences.

    >>> windows_needed(noise_scale=5000, window=512, dimensions=26)
    184
    """
    return max(1, math.ceil(2 / dimensions * (noise_scale / (window * relative_error)) ** 2))


def next_measurement(
    *, noise_scale: float, window_tokens: int, dimensions: float
) -> NextMeasurement:
    """Return windows, and how large, that would be enough: they double until few are needed."""
    tokens = window_tokens
    while True:
        needed = windows_needed(noise_scale=noise_scale, window=tokens, dimensions=dimensions)
        if needed <= MOST_WINDOWS:
            return NextMeasurement(num_windows=max(needed, FEWEST_WINDOWS), window_tokens=tokens)
        tokens *= 2
