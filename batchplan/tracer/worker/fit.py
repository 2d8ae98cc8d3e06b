"""Exact polynomials in (b, s) through aligned event logs, and the few peaks that can bind."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from .script import FREE_OTHER, MAKE, Entry
from .step import Interval

MAX_RESIDUAL = 0.005
"""A polynomial further off than this at a point left out of the fit is refused."""
BATCHES_TO_COMPARE = (1, 2, 3, 4, 6, 8, 16, 64, 512)
"""Micro-batches at which two possible peaks are compared."""


class NotPolynomialError(Exception):
    """The points do not lie on one polynomial; trace the exact point instead."""


def monomials(b: int, s: int) -> list[int]:
    """Return the basis at one point: 1, s, s^2, b, b*s, b*s^2."""
    return [1, s, s * s, b, b * s, b * s * s]


ALL, LENGTH_ONLY, BATCH_ONLY, CONSTANT = (0, 1, 2, 3, 4, 5), (0, 1, 2), (0, 3), (0,)
"""Which monomials a fit may use: one point each is needed."""


class Fitter:
    """Solves for coefficients at as many points as there are monomials, in exact fractions."""

    def __init__(self, points: Sequence[tuple[int, int]], basis: Sequence[int]) -> None:
        self.points = list(points)
        self._basis = list(basis)
        self._inverse = _invert(
            [[Fraction(monomials(b, s)[i]) for i in self._basis] for b, s in points]
        )

    def fit(self, values: Sequence[int]) -> list[float]:
        """Return six coefficients of ``profile.BASIS`` through the values at the points."""
        coefficients: list[float] = [0] * 6
        for monomial, row in zip(self._basis, self._inverse):
            found = sum((row[i] * values[i] for i in range(len(values))), Fraction(0))
            coefficients[monomial] = int(found) if found.denominator == 1 else float(found)
        return coefficients


def evaluate(coefficients: Sequence[float], b: int, s: int) -> float:
    """Return the polynomial at one point."""
    return sum(c * m for c, m in zip(coefficients, monomials(b, s)))


def fit_pass(
    fitter: Fitter, intervals: Sequence[Interval], seq_lens: Sequence[int]
) -> dict[str, Any]:
    """Return one pass of a stage from its interval at every point of the fit.

    Possible peaks are compared at ``seq_lens``, and the highest there are kept.

    Raises:
        NotPolynomialError: when the points did not run the same ops.
    """
    if len({len(interval.activations) for interval in intervals}) != 1:
        raise NotPolynomialError(f"{intervals[0].stage} runs other ops at other shapes")
    first = intervals[0]
    candidates: list[Any] = [(0, [0] * 6, 0, 0)]
    for event in range(len(first.activations)):
        values = [interval.activations[event] for interval in intervals]
        candidates.append(
            (event + 1, fitter.fit(values), first.new_grads[event], first.in_flight[event])
        )
    return {
        "delta": {"coefficients": fitter.fit([interval.delta for interval in intervals])},
        "peaks": [
            {
                "activations": {"coefficients": coefficients},
                "new_grad_params": new,
                "in_flight_grad_params": flight,
            }
            for _, coefficients, new, flight in _undominated(candidates, seq_lens)
        ],
    }


class SizeTable:
    """The scripts of stages, their sizes as numbers of a table of polynomials."""

    def __init__(self, fitter: Fitter, sizes: Sequence[Sequence[int]]) -> None:
        self.polynomials: list[list[float]] = []
        self._fitter = fitter
        self._sizes = sizes
        self._numbers: dict[tuple[int, ...], int] = {}

    def script(self, scripts: Sequence[Sequence[Entry]]) -> list[int]:
        """Return one script of all points, three numbers an entry: action, what, how.

        Empty where the points free in another order.
        """
        first = scripts[0]
        for other in scripts[1:]:
            if [(e.action, e.how) for e in other] != [(e.action, e.how) for e in first]:
                return []
        flat: list[int] = []
        for entries in zip(*scripts):
            what = entries[0].what
            if entries[0].action in (MAKE, FREE_OTHER):
                what = self._number([sizes[e.what] for sizes, e in zip(self._sizes, entries)])
            flat.extend((entries[0].action, what, entries[0].how))
        return flat

    def _number(self, values: Sequence[int]) -> int:
        found = self._numbers.get(tuple(values))
        if found is None:
            found = self._numbers[tuple(values)] = len(self.polynomials)
            self.polynomials.append(self._fitter.fit(values))
        return found


def _undominated(candidates: list[Any], seq_lens: Sequence[int]) -> list[Any]:
    """Drop every candidate that another one is at least as high as, everywhere we look."""
    grid = [(b, s) for b in BATCHES_TO_COMPARE for s in seq_lens]
    scored = []
    for candidate in candidates:
        _, coefficients, new, flight = candidate
        score = [evaluate(coefficients, b, s) for b, s in grid]
        scored.append(([*score, new, flight], candidate))
    scored.sort(key=lambda item: (-sum(item[0][: len(grid)]), -item[0][-2], -item[0][-1]))
    kept: list[Any] = []
    for score, candidate in scored:
        if not any(all(x >= y for x, y in zip(other, score)) for other, _ in kept):
            kept.append((score, candidate))
    return [candidate for _, candidate in kept]


def _invert(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    size = len(matrix)
    rows = [row + [Fraction(int(i == j)) for j in range(size)] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(r for r in range(column, size) if rows[r][column] != 0)
        rows[column], rows[pivot] = rows[pivot], rows[column]
        scale = rows[column][column]
        rows[column] = [value / scale for value in rows[column]]
        for r in range(size):
            if r != column and rows[r][column] != 0:
                factor = rows[r][column]
                rows[r] = [x - factor * y for x, y in zip(rows[r], rows[column])]
    return [row[size:] for row in rows]
