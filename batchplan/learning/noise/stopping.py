"""When a measurement is precise enough to stop.

Every look at the interval is a chance to stop on a lucky one, so there are few, each after a
quarter more windows; what that costs in coverage is simulated in ``tests/test_noise.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from batchplan.learning.noise.estimate import noise_scale
from batchplan.learning.noise.windows import Window

FEWEST_WINDOWS = 20
"""Below this the interval itself is a guess: its width rests on the spread of so few."""
LOOK_FACTOR = 1.25
"""Windows at one look over those at the last: a choice."""


class Watch:
    """Says when half the interval is no more than a share of the estimate."""

    def __init__(self, precision: float) -> None:
        """Watch for ``precision``, such as 0.3."""
        self._precision = precision
        self._next_look = FEWEST_WINDOWS

    def is_enough(self, windows: Sequence[Window]) -> bool:
        """Whether these windows are; to be asked after each."""
        if len(windows) < self._next_look:
            return False
        self._next_look = int(self._next_look * LOOK_FACTOR)
        return noise_scale(windows).tokens.relative_width <= self._precision
