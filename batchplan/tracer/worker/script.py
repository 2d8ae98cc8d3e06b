"""A step's log, cut into one script per stage, so that a reader can play any number of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAKE, FREE_OWN, FREE_OTHER, ACCUMULATE = range(4)
PLAIN, GRADIENT, RELEASED = range(3)
REACH = 2
"""A loop over layers drops an output once the next layer has returned: two stages later."""
ANYWHERE = 2 * (2 * REACH + 1)
"""Place of an allocation whose maker is further away."""


@dataclass
class Entry:
    """One line of a stage's script.

    ``MAKE`` an allocation of ``what`` (its event) for ``how`` (plain, gradient, or freed by
    leaving autocast); ``FREE_OWN`` the ``what``-th that this script made; ``FREE_OTHER`` one like
    event ``what`` that the stage ``how`` places away made (see ``_place``); ``ACCUMULATE`` the
    gradient that is this script's ``what``-th.
    """

    action: int
    what: int
    how: int = 0


def write_scripts(
    step: Any,
    log: Sequence[int],
    ends: Sequence[int],
    accumulated_at: dict[int, int],
    released: dict[int, int],
) -> None:
    """Give every interval of ``step`` its script.

    Args:
        step: its forward and backward intervals get their ``script``.
        log: the recorder's: ``n`` makes allocation n, ``~n`` frees it.
        ends: where each interval ends in the log, forward then backward.
        accumulated_at: position in the log to the event of the gradient added to ``.grad`` there.
        released: events that leaving autocast frees.
    """
    intervals = [*step.forward, *step.backward]
    order = [interval.stage for interval in step.forward]
    gradients = set(accumulated_at.values())
    made_by: dict[int, tuple[int, int]] = {}
    start = 0
    for number, (interval, end) in enumerate(zip(intervals, ends)):
        here = order.index(interval.stage) if interval.stage in order else 0
        count = 0
        for at in range(start, end):
            if at in accumulated_at:
                maker, place = made_by[accumulated_at[at]]
                if maker == number:
                    interval.script.append(Entry(ACCUMULATE, place))
            event = log[at]
            if event >= 0:
                kind = GRADIENT if event in gradients else RELEASED if event in released else PLAIN
                made_by[event] = (number, count)
                count += 1
                interval.script.append(Entry(MAKE, event, kind))
                continue
            event = ~event
            maker, place = made_by[event]
            if maker == number:
                interval.script.append(Entry(FREE_OWN, place))
            elif event not in released:
                made_in_backward = maker >= len(step.forward)
                there = order.index(intervals[maker].stage)
                interval.script.append(
                    Entry(FREE_OTHER, event, _place(there - here, made_in_backward))
                )
        start = end


def _place(distance: int, made_in_backward: bool) -> int:
    """Return 0 to 4 for the stages from two before to two after; 5 more in backward."""
    if abs(distance) > REACH:
        return ANYWHERE
    return distance + REACH + (2 * REACH + 1) * made_in_backward
