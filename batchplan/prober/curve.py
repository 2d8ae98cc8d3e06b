"""Memory over the micro-batch: as the estimate expects it, corrected by what was measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from batchplan.prober.trial import Trial

SLOPE_WEIGHT = 0.02
"""Of the room: the change of memory that speaks as loud for the estimate's slope as a measured
one does against it. Rounding and cached segments move a peak by about so much."""
LEAST_SLOPE = 0.1
"""Of the estimate's slope: memory hardly grew, so the next step is long, but not endless."""


class Curve:
    """What a micro-batch takes: lines through what ran, in the estimate's own coordinate."""

    def __init__(self, *, predicted: Callable[[int], int], usable_bytes: int, cap: int) -> None:
        self.predicted = cache(predicted)
        self._usable_bytes = usable_bytes
        self._cap = cap
        self._held = _Line(weight=SLOPE_WEIGHT * usable_bytes)
        self._live = _Line(weight=SLOPE_WEIGHT * usable_bytes)
        self._beside_bytes = 0

    @property
    def is_measured(self) -> bool:
        """Whether any run told a figure."""
        return bool(self._held.points or self._live.points)

    @property
    def last_held_bytes(self) -> int | None:
        """What the largest run held that the limit did not press."""
        return self._held.points[-1][1] if self._held.points else None

    def measure(self, trial: Trial) -> None:
        """Add a run that is larger than every one before it."""
        predicted, held = self.predicted(trial.micro_batch), held_bytes(trial)
        if trial.allocated_peak_bytes is not None:
            self._live.points.append((predicted, trial.allocated_peak_bytes))
        if trial.in_use_peak_bytes is not None and trial.reserved_peak_bytes is not None:
            self._beside_bytes = trial.in_use_peak_bytes - trial.reserved_peak_bytes
        if held is not None and not is_pressed(trial):
            if self._held.points and held < self._held.points[-1][1]:
                self._held.points.clear()
            self._held.points.append((predicted, held))

    def left_bytes(self, micro_batch: int) -> int | None:
        """Return what the line leaves of the room; None without one."""
        if not self._held.points:
            return None
        return round(self._usable_bytes - self._held.at(self.predicted(micro_batch)))

    def boundary(self, fits: int, fails: int) -> float:
        """Return the micro-batch, with its fraction, that should just fit.

        It lies between where all that the allocator likes to keep would fill the room and where
        live tensors alone would: a run at the limit gives cached memory back and goes on.
        """
        room = self._usable_bytes
        held = self.inverse(self._held.crossing(room)) if self._held.points else fits
        live = held
        if self._live.points:
            live = self.inverse(self._live.crossing(room - self._beside_bytes))
        return (max(held, fits) + min(max(live, held), fails)) / 2

    def inverse(self, target_bytes: float) -> float:
        """Return the micro-batch, with its fraction, for which so much is predicted."""
        low, high = 0, 1
        while high <= self._cap and self.predicted(high) <= target_bytes:
            low, high = high, 2 * high
        high = min(high, self._cap + 1)
        while high - low > 1:
            middle = (low + high) // 2
            if self.predicted(middle) <= target_bytes:
                low = middle
            else:
                high = middle
        if not 0 < low < self._cap:
            return float(low)
        below, above = self.predicted(low), self.predicted(low + 1)
        return low + min((target_bytes - below) / max(above - below, 1), 1.0)


class _Line:
    """Measured bytes over predicted ones; where little was measured, as steep as predicted."""

    def __init__(self, *, weight: float) -> None:
        self._weight = weight
        self.points: list[tuple[int, int]] = []
        """(predicted, measured) bytes, by micro-batch."""

    @property
    def _slope(self) -> float:
        (first_predicted, first), (last_predicted, last) = self.points[0], self.points[-1]
        growth = max(last_predicted - first_predicted + self._weight, 1)
        return max((last - first + self._weight) / growth, LEAST_SLOPE)

    def at(self, predicted_bytes: float) -> float:
        """Return what is expected to be measured where so much is predicted."""
        last_predicted, last = self.points[-1]
        return last + self._slope * (predicted_bytes - last_predicted)

    def crossing(self, room_bytes: int) -> float:
        """Return the predicted bytes at which so much would be measured."""
        last_predicted, last = self.points[-1]
        return last_predicted + (room_bytes - last) / self._slope


def held_bytes(trial: Trial) -> int | None:
    """Return what counts against the room: as the driver shows it, else the allocator."""
    known = (trial.in_use_peak_bytes, trial.reserved_peak_bytes, trial.allocated_peak_bytes)
    return next((value for value in known if value is not None), None)


def is_pressed(trial: Trial) -> bool:
    """Return whether the allocator gave memory back: then the limit says how much it held."""
    return any(rank.num_retries for rank in trial.ranks)
