"""From windows to the noise scale ``B_simple = tr Sigma / |G|^2``, with its interval.

It is a ratio of means, never a mean of ratios. Source: McCandlish et al. 2018 (arXiv 1812.06162).
It is a noise scale and not the critical batch: Merrill et al. 2025 measured both, and they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from batchplan.errors import SpecError
from batchplan.learning.noise.fieller import LEVEL, Ratio, fieller
from batchplan.learning.noise.plan import (
    NextMeasurement,
    effective_dimensions,
    next_measurement,
)
from batchplan.learning.noise.windows import Window, block_means, weighted


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScale:
    """What windows of gradients say of one model, at one point of its training."""

    tokens: Ratio
    tokens_per_sequence: float
    """Target tokens, on average: from tokens to sequences."""
    noise: float
    """tr Sigma of one token's gradient: the mean of ``S``."""
    signal: float
    """Mean of ``|G|^2``; may be negative."""
    dimensions: float | None
    """``d_eff``; None where the spread shows none."""
    loss: float
    num_windows: int
    num_micro_batches: int
    """Of all windows."""
    num_tokens: int
    """Target tokens of all windows."""

    @property
    def sequences(self) -> Ratio:
        """The same in sequences of this data's mean length."""
        return self.tokens.times(1 / self.tokens_per_sequence)

    def next(self) -> NextMeasurement | None:
        """Return what would be enough next time; None where this was, or nothing can be told."""
        worst = self.tokens.value or self.tokens.low
        if self.tokens.is_bounded or self.dimensions is None:
            return None
        window = self.num_tokens // self.num_windows
        if not worst:  # the signal is clearly below 0, which one measurement in 40 is by chance
            return NextMeasurement(num_windows=self.num_windows, window_tokens=2 * window)
        # A mean below its lower bound is no better guess than the bound.
        return next_measurement(
            noise_scale=max(worst, self.tokens.low),
            window_tokens=window,
            dimensions=self.dimensions,
        )


def noise_scale(windows: Sequence[Window], *, block: int = 1, level: float = LEVEL) -> NoiseScale:
    """Return the noise scale of windows that were drawn independently.

    Args:
        windows: at least two, better 50, of the same number of micro-batches.
        block: windows averaged into one sample; above 1 where parameters moved between them.
        level: share of intervals that hold the true value.

    Raises:
        SpecError: with fewer than two blocks of windows, or windows of different make.
    """
    sizes = {window.num_micro_batches for window in windows}
    if len(sizes) > 1:
        raise SpecError(f"Windows of {sorted(sizes)} micro-batches cannot be averaged.")
    tokens = sum(window.num_tokens for window in windows)
    own = [window.noise for window in windows]
    noises = weighted(own, [window.num_tokens for window in windows])
    signals = weighted(
        [window.signal for window in windows], [window.token_pairs for window in windows]
    )
    ratio = fieller(block_means(noises, block), block_means(signals, block), level=level)
    return NoiseScale(
        tokens=ratio,
        tokens_per_sequence=tokens / sum(window.num_sequences for window in windows),
        noise=fmean(noises),
        signal=fmean(signals),
        dimensions=effective_dimensions(
            own, signals, num_micro_batches=sizes.pop(), window=tokens / len(windows)
        ),
        loss=sum(window.loss * window.num_tokens for window in windows) / tokens,
        num_windows=len(windows),
        num_micro_batches=sum(window.num_micro_batches for window in windows),
        num_tokens=tokens,
    )


def running_estimates(windows: Sequence[Window]) -> list[tuple[int, Ratio]]:
    """Return the noise scale in tokens after the first windows, at numbers that double.

    The last is that of all. One sees whether the interval still moves.
    """
    counts = [count for count in (2**power for power in range(1, 40)) if count < len(windows)]
    return [(count, noise_scale(windows[:count]).tokens) for count in (*counts, len(windows))]
