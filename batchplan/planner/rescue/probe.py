"""Prices of attempts, with as few traces of the model's code as can be."""

from __future__ import annotations

from collections.abc import Collection

from batchplan.errors import TraceError
from batchplan.memory import Estimate
from batchplan.planner.candidates import SearchSpace
from batchplan.planner.rescue.attempt import Attempt
from batchplan.planner.rescue.changes import Change, apply_all, as_run

MOST_TRACES = 8
"""Traces that looking for changes may ask for; each takes seconds where it is not cached."""


class Probe:
    """What is known of the start's surroundings while changes are looked for."""

    def __init__(self, begin: Attempt, space: SearchSpace, *, traces: int) -> None:
        self._begin = begin
        self._left = traces
        # The search has asked for these already.
        self._traced = {begin.traced_as}
        for checkpointing in space.checkpointings:
            for attention in space.attentions or (begin.recipe.attention,):
                known = begin.change({}, checkpointing=checkpointing, attention=attention)
                self._traced.add(known.traced_as)
        self._untraceable: set[tuple[object, ...]] = set()

    def is_traced(self, attempt: Attempt) -> bool:
        """Whether pricing it takes no new trace."""
        return attempt.traced_as in self._traced

    def price(self, attempt: Attempt) -> Estimate | None:
        """Return its quick price; None where it cannot be traced, or no more traces are allowed.

        Raises:
            TraceError: when not even the start can be traced.
        """
        key = attempt.traced_as
        if key in self._untraceable:
            return None
        if key not in self._traced:
            if not self._left:
                return None
            self._left -= 1
        try:
            found = attempt.price()
        except TraceError:
            if key == self._begin.traced_as:
                raise
            self._untraceable.add(key)
            return None
        self._traced.add(key)
        return found

    def is_hopeless(self, begin: Attempt, changes: Collection[Change], *, above: int) -> bool:
        """Whether what the changes of activations cannot lower is already more than ``above``.

        It is read off the price without those changes, so it takes no trace.
        """
        lowering = [change.reaches for change in changes if change.reaches is not None]
        applied = apply_all(begin, [change for change in changes if change.reaches is None])
        without = None if applied is None else as_run(applied)
        if not lowering or without is None:
            return False
        if without.traced_as in self._untraceable:
            return True
        base = self.price(without) if self.is_traced(without) else None
        if base is None:
            return False
        stays = (
            moment.num_bytes
            for moment in base.timeline
            if not any(reaches(moment) for reaches in lowering)
        )
        overhead = base.in_use_peak_bytes - base.reserved_peak_bytes
        return max(stays, default=0) + overhead > above
