"""The interval of a ratio of two means, by Fieller's theorem.

For means ``a`` and ``q`` with variances ``va``, ``vq`` and covariance ``c``, the ratios ``r`` that
the data do not reject have ``(a - r q)^2 <= t^2 (va - 2 r c + r^2 vq)``: an interval where ``q`` is
clearly not 0, and otherwise everything beyond a bound. Source: Fieller 1954, "Some problems in
interval estimation", J. R. Stat. Soc. B 16. Left out: the means are taken as normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from batchplan.errors import SpecError

LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A ratio that cannot be negative, and what the data say of it."""

    value: float | None
    """Ratio of the means; None where the denominator's is not above 0, or the other's below."""
    low: float
    """Lower bound; 0 where there is none."""
    high: float
    """Upper bound; infinite where there is none."""

    @property
    def is_bounded(self) -> bool:
        """Whether there is an upper bound."""
        return math.isfinite(self.high)

    @property
    def is_informed(self) -> bool:
        """Whether the data exclude anything at all."""
        return self.low > 0 or self.is_bounded

    def times(self, factor: float) -> Ratio:
        """Return the same in another unit, of which ``factor`` make one of these."""
        value = None if self.value is None else self.value * factor
        return Ratio(value=value, low=self.low * factor, high=self.high * factor)

    def holds(self, value: float) -> bool:
        """Whether a value is among those that the data do not reject."""
        return self.low <= value <= self.high

    @property
    def relative_width(self) -> float:
        """Half the interval over the value; infinite where either is unknown."""
        if not self.is_bounded or not self.value:
            return math.inf
        return (self.high - self.low) / (2 * self.value)


def fieller(
    numerators: Sequence[float], denominators: Sequence[float], *, level: float = LEVEL
) -> Ratio:
    """Return the ratio of the means of paired samples with its interval.

    Args:
        numerators: at least two, of which the true mean is positive.
        denominators: as many; their true mean is not negative, but samples may be.
        level: share of intervals that hold the true ratio.

    Raises:
        SpecError: with fewer than two pairs.
    """
    count = len(numerators)
    if count < 2 or count != len(denominators):
        raise SpecError(
            f"An interval needs two windows or more with both estimates, not {count} and "
            f"{len(denominators)}."
        )
    a, q = fmean(numerators), fmean(denominators)
    share = 1 / (count * (count - 1))
    va = share * sum((x - a) ** 2 for x in numerators)
    vq = share * sum((y - q) ** 2 for y in denominators)
    c = share * sum((x - a) * (y - q) for x, y in zip(numerators, denominators, strict=True))
    square = student_t(0.5 + level / 2, count - 1) ** 2
    low, high = _bounds(q * q - square * vq, -2 * (a * q - square * c), a * a - square * va, q)
    return Ratio(value=a / q if q > 0 and a >= 0 else None, low=low, high=high)


def _bounds(A: float, B: float, C: float, q: float) -> tuple[float, float]:  # noqa: N803
    """Return the least and the largest positive ``r`` with ``A r^2 + B r + C <= 0``.

    Where ``A`` is not positive they go on without end.
    """
    nothing = (0.0, math.inf)
    if C <= 0 and A <= 0:
        return nothing  # 0 is not rejected, nor is anything large
    if A == 0:
        return (C / -B, math.inf) if B < 0 else nothing
    discriminant = B * B - 4 * A * C
    if discriminant < 0:
        return nothing
    # The stable form: no difference of two nearly equal numbers.
    far = -(B + math.copysign(math.sqrt(discriminant), B)) / 2
    roots = sorted((far / A, C / far if far else 0.0))
    if A < 0:
        return roots[1], math.inf  # C > 0, so exactly one root is positive
    if q <= 0 or roots[1] < 0:
        return nothing  # a length or a variance below 0, clearly: the samples are no good
    return max(0.0, roots[0]), roots[1]


def student_t(probability: float, freedom: int) -> float:
    """Return a quantile of Student's t.

    Exact for 1 and 2 degrees of freedom, then the expansion in 1/freedom of Abramowitz and Stegun
    26.7.5: within 0.4 % from 3 on.

    >>> [round(student_t(0.975, n), 3) for n in (1, 2, 4, 19, 199)]
    [12.706, 4.303, 2.776, 2.093, 1.972]
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        spread = 2 * probability - 1
        return spread * math.sqrt(2 / (1 - spread * spread))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))
