"""The fit of the constants in ``batchplan.throughput.rates``, on the rows that are not held out.

Seven constants over all llm-foundry rows: the shares of products and scores on A100 and on H100,
and bytes and overlap that do not depend on the device. The absolute logarithms of predicted over
measured are minimised, which no single odd row can steer: least squares again and again, each row
weighted by one over its last error (Gauss-Newton in the logarithms of the constants).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchplan.throughput import Efficiency
from benchmarks.throughput.replay import Case, all_cases

FITTED_SOURCE = "llm-foundry"
_SMALLEST_ERROR = 0.01
"""Below it a row weighs no more: the absolute value is rounded off at the bottom."""
_NUDGE = 1e-4
_LARGEST_STEP = 0.3
_CONVERGED = 1e-3
_ITERATIONS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What is fitted, by the names that ``rates`` has for it."""

    a100_products: float
    a100_scores: float
    h100_products: float
    h100_scores: float
    elementwise_bytes: float
    loss_bytes: float
    overlap: float

    def reached(self, gpu_name: str) -> Efficiency:
        """Return them for one device, as ``step_timer`` takes them."""
        is_h100 = "H100" in gpu_name
        return Efficiency(
            products=self.h100_products if is_h100 else self.a100_products,
            scores=self.h100_scores if is_h100 else self.a100_scores,
            elementwise_bytes=self.elementwise_bytes,
            loss_bytes=self.loss_bytes,
            overlap=self.overlap,
            is_measured=True,
            source="fit",
        )


START = Constants(
    a100_products=0.6,
    a100_scores=0.3,
    h100_products=0.6,
    h100_scores=0.3,
    elementwise_bytes=100.0,
    loss_bytes=30.0,
    overlap=0.5,
)
"""Far from the answer, so that the answer does not depend on what the table holds."""


def source_cases() -> tuple[Case, ...]:
    """Return the cases of both halves."""
    return tuple(case for case in all_cases() if case.row.source == FITTED_SOURCE)


def fitting_cases() -> tuple[Case, ...]:
    """Return the cases the constants may see."""
    return tuple(case for case in source_cases() if not case.row.is_held_out)


def errors(constants: Constants, cases: Sequence[Case]) -> list[float]:
    """Return the logarithms of predicted over measured."""
    return [
        math.log(case.seconds(constants.reached(case.gpu.name)) / case.measured) for case in cases
    ]


def fit(cases: Sequence[Case], start: Constants = START) -> Constants:
    """Return the constants of least mean absolute error."""
    best = start
    for _ in range(_ITERATIONS):
        here = errors(best, cases)
        weights = [1 / max(abs(error), _SMALLEST_ERROR) for error in here]
        slopes = [
            [(there - error) / _NUDGE for there, error in zip(moved, here, strict=True)]
            for moved in (errors(_scaled(best, {name: _NUDGE}), cases) for name in _NAMES)
        ]
        matrix = [[_product(weights, one, two) for two in slopes] for one in slopes]
        target = [-_product(weights, one, here) for one in slopes]
        steps = _solve(matrix, target)
        longest = max(abs(step) for step in steps)
        shrink = min(1.0, _LARGEST_STEP / longest) if longest else 1.0
        best = _scaled(best, {n: shrink * step for n, step in zip(_NAMES, steps, strict=True)})
        if longest < _CONVERGED:
            break
    return best


def errors_on_unseen_models(cases: Sequence[Case]) -> list[float]:
    """Return the errors of every case with constants fitted to the other models alone."""
    found = []
    for model in dict.fromkeys(case.row.model for case in cases):
        others = [case for case in cases if case.row.model != model]
        found += errors(fit(others), [case for case in cases if case.row.model == model])
    return found


_NAMES = tuple(Constants.__dataclass_fields__)


def _scaled(constants: Constants, logarithms: dict[str, float]) -> Constants:
    changed = {name: getattr(constants, name) * math.exp(step) for name, step in logarithms.items()}
    return replace(constants, **changed)


def _product(weights: list[float], one: list[float], two: list[float]) -> float:
    return math.fsum(w * x * y for w, x, y in zip(weights, one, two, strict=True))


def _solve(matrix: list[list[float]], target: list[float]) -> list[float]:
    """Return the solution of a small positive definite system, by Gaussian elimination."""
    rows = [[*row, value] for row, value in zip(matrix, target, strict=True)]
    size = len(rows)
    for pivot in range(size):
        largest = max(range(pivot, size), key=lambda index: abs(rows[index][pivot]))
        rows[pivot], rows[largest] = rows[largest], rows[pivot]
        for index in range(size):
            if index != pivot:
                factor = rows[index][pivot] / rows[pivot][pivot]
                rows[index] = [
                    a - factor * b for a, b in zip(rows[index], rows[pivot], strict=True)
                ]
    return [row[-1] / row[index] for index, row in enumerate(rows)]
