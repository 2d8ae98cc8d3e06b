"""One window of micro-batches at the same parameters: sums, and what is estimated from them.

With ``s_j`` the gradient of micro-batch j's loss summed over its ``t_j`` target tokens, ``T`` of
them in all, and ``gbar = sum_j s_j / T``, the gradient of the whole window:

    |G|^2 = sum_{i != j} s_i . s_j / sum_{i != j} t_i t_j      products of different micro-batches
          = (T^2 |gbar|^2 - sum_j |s_j|^2) / (T^2 - sum_j t_j^2)
    S     = T (|gbar|^2 - |G|^2)                               what remains is the window's noise

No micro-batch is multiplied with itself, so that their variances, whatever they are, cancel:
``|G|^2`` is unbiased, **can be negative**, and clamping it would bias what is averaged over
windows. So is ``S / T``, the variance of the window's gradient. Equal micro-batches make both those
of McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1.

Weights ``t_j`` instead (``S = (sum_j |s_j|^2 / t_j - T |gbar|^2) / (n - 1)``) would be right only
if the variance of a mean gradient were ``S / t_j``, as if the tokens of a sequence were
independent. They are not, and what that leaves in ``|G|^2`` is of the size of the noise.

Left out: the figure in tokens is that of sequences of this data's lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

from batchplan.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Sums over micro-batches whose gradients were taken at the same parameters."""

    num_micro_batches: int
    num_sequences: int
    num_tokens: int
    """Target tokens: those that count in the loss."""
    squared_tokens: int
    """``sum_j t_j^2``."""
    sum_of_squares: float
    """``sum_j |s_j|^2``."""
    square_of_mean: float
    """``|gbar|^2``."""
    loss: float = 0.0
    """Mean over target tokens."""

    def __post_init__(self) -> None:
        if self.num_micro_batches < 2:
            raise SpecError("The noise of a gradient needs two micro-batches or more in a window.")
        if self.num_tokens < 1:
            raise SpecError("A window without target tokens has no gradient.")
        if self.token_pairs <= 0:
            raise SpecError("All target tokens of a window are in one micro-batch.")

    @property
    def token_pairs(self) -> int:
        """``sum_{i != j} t_i t_j``."""
        return self.num_tokens**2 - self.squared_tokens

    @property
    def signal(self) -> float:
        """Unbiased squared length of the true gradient; negative where noise hides it.

        >>> Window(num_micro_batches=3, num_sequences=3, num_tokens=60, squared_tokens=1400,
        ...     sum_of_squares=1800.0, square_of_mean=17 / 18).signal  # 1600 / 2200
        0.7272727272727273
        """
        products = self.num_tokens**2 * self.square_of_mean - self.sum_of_squares
        return products / self.token_pairs

    @property
    def noise(self) -> float:
        """Trace of the covariance of one token's gradient; seldom below 0.

        Equal micro-batches make it Bessel's variance of their gradients, times their tokens, which
        never is.
        """
        return self.num_tokens * (self.square_of_mean - self.signal)


def weighted(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return samples whose plain mean is the weighted one, and whose spread is its spread.

    Those of a ratio of sums, linearised (Cochran 1977, "Sampling Techniques", 6.4): windows of
    more tokens weigh more, else a window's few would bias what is divided by their number.

    >>> weighted([1.0, 3.0], [1, 3])
    [1.75, 3.25]
    """
    total = math.fsum(weights)
    mean = math.fsum(map(mul, values, weights)) / total
    scale = len(values) / total
    pairs = zip(values, weights, strict=True)
    return [mean + scale * weight * (value - mean) for value, weight in pairs]


def block_means(values: Sequence[float], size: int) -> list[float]:
    """Return means of ``size`` neighbours; a short rest is left out.

    Windows taken while parameters move are correlated; means of blocks are less so.

    >>> block_means([1, 2, 3, 4, 5], 2)
    [1.5, 3.5]
    """
    if size < 1:
        raise SpecError(f"A block of {size} windows has no mean.")
    ends = range(size, len(values) + 1, size)
    return [sum(values[end - size : end]) / size for end in ends]
