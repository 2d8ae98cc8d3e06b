"""The highest point of the live bytes, and what is alive there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from batchplan.allocator.recording import Allocation, Recording
from batchplan.allocator.sizes import round_size


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePeak:
    """The first instant at which the most bytes are live, each block rounded to 512 bytes."""

    num_bytes: int
    position: int
    """Of the event that reaches the peak; 0 when nothing is ever allocated."""
    phase: str
    allocations: tuple[Allocation, ...]
    """Those alive, in the order in which they were made."""

    def by_kind(self) -> dict[str, int]:
        """Return the rounded bytes of each kind, the most first. They add up to the peak."""
        return self._bytes_by(lambda one: one.kind)

    def by_module(self) -> dict[str, int]:
        """Return the rounded bytes of each module, the most first. They add up to the peak."""
        return self._bytes_by(lambda one: one.module)

    def largest(self, count: int) -> tuple[Allocation, ...]:
        """Return the largest allocations, the largest first, equal ones in the order made."""
        return tuple(sorted(self.allocations, key=lambda one: -one.num_bytes)[:count])

    def _bytes_by(self, group_of: Callable[[Allocation], str]) -> dict[str, int]:
        total: Counter[str] = Counter()
        for one in self.allocations:
            total[group_of(one)] += round_size(one.num_bytes)
        return dict(total.most_common())


def live_peak(recording: Recording) -> LivePeak:
    """Return the highest point of a recording's live bytes."""
    sizes = [round_size(one.num_bytes) for one in recording.allocations]
    live = highest = position = 0
    for at, event in enumerate(recording.events):
        if event < 0:
            live -= sizes[~event]
            continue
        live += sizes[event]
        if live > highest:
            highest, position = live, at
    alive: dict[int, Allocation] = {}
    for event in recording.events[: position + 1] if highest else ():
        if event < 0:
            del alive[~event]
        else:
            alive[event] = recording.allocations[event]
    return LivePeak(
        num_bytes=highest,
        position=position,
        phase=recording.phase_at(position),
        allocations=tuple(alive.values()),
    )
