"""The smallest sets of changes that make a plan fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations

from batchplan.planner.assemble import Question
from batchplan.planner.candidates import SearchSpace
from batchplan.planner.plan import Plan, Rescue
from batchplan.planner.rescue.attempt import MOST_RESCUES, Attempt, begin
from batchplan.planner.rescue.changes import SHARDED, Change, apply_all, as_run, changes_for
from batchplan.planner.rescue.probe import MOST_TRACES, Probe
from batchplan.planner.rescue.savings import savings

MOST_CHANGES = 3
ENOUGH = 3
"""With so many found, pairs get no trace of their own, and three changes are not tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    """Some rows of the table, and the configuration they lead to."""

    changes: tuple[Change, ...]
    strengths: dict[str, int]
    """Position in the table by knob, of the rows and of a sharding that one brings along."""
    attempt: Attempt

    @property
    def size(self) -> tuple[int, tuple[int, ...]]:
        """How much it changes: how many knobs, and their rows, the furthest down first."""
        return len(self.strengths), tuple(sorted(self.strengths.values(), reverse=True))

    def includes(self, other: _Set) -> bool:
        """Whether it turns every knob of ``other`` at least as far."""
        return all(
            self.strengths.get(knob, -1) >= strength for knob, strength in other.strengths.items()
        )


def rescues(*, question: Question, space: SearchSpace, start: Plan) -> tuple[Rescue, ...]:
    """Return the smallest sets of changes that are confirmed to fit, smallest first.

    No set is offered of which a part is enough, so each of its changes is needed. Three changes at
    once are tried only while few have fitted. Of a start that fits, what would make it smaller is
    returned: see ``savings``.

    Leaves out: sets that need more than ``MOST_TRACES`` traces of the model's code to be found.

    Raises:
        TraceError: when the start cannot be traced; what only a change makes untraceable is
            left out.
    """
    if start.fits:
        return savings(question=question, space=space, start=start)
    here = begin(question=question, space=space, start=start)
    probe = Probe(here, space, traces=MOST_TRACES)
    found: list[tuple[_Set, Rescue]] = []
    few, many = range(1, MOST_CHANGES), range(MOST_CHANGES, MOST_CHANGES + 1)
    for sizes in (few, many):
        for one in sorted(_sets(question, here, sizes), key=lambda each: each.size):
            if len(found) == MOST_RESCUES:
                break
            if any(one.includes(other) for other, _ in found):
                continue
            may_trace = len(found) < ENOUGH if sizes is few else not found
            rescue = _tried(probe, here, one, may_trace=may_trace)
            if rescue is not None:
                found.append((one, rescue))
        if len(found) >= ENOUGH:
            break
    return tuple(rescue for _, rescue in found)


def _sets(question: Question, here: Attempt, sizes: range) -> Iterator[_Set]:
    """Yield the sets that turn so many knobs, apply, and keep the batch."""
    table = changes_for(question)
    by_number = (combinations(enumerate(table), number) for number in range(1, max(sizes) + 1))
    for rows in chain.from_iterable(by_number):
        strengths = {change.knob: position for position, change in rows}
        if len(strengths) < len(rows):
            continue
        changes = tuple(change for _, change in rows)
        applied = apply_all(here, changes)
        if applied is None or not applied.keeps_the_batch:
            continue
        sharding = applied.recipe.sharding
        if sharding is not here.recipe.sharding:
            strengths["sharding"] = table.index(SHARDED[sharding])
        settled = as_run(applied) if len(strengths) in sizes else None
        if settled is not None:
            yield _Set(changes=changes, strengths=strengths, attempt=settled)


def _tried(probe: Probe, here: Attempt, one: _Set, *, may_trace: bool) -> Rescue | None:
    """Return the offer if it is confirmed to fit: bounds first, then the quick price."""
    attempt = one.attempt
    usable = attempt.usable_bytes
    if not probe.is_traced(attempt):
        if len(one.changes) > 1 and not may_trace:
            return None
        if probe.is_hopeless(here, one.changes, above=usable):
            return None
    quick = probe.price(attempt)
    if quick is None or quick.bound_bytes > usable:
        return None
    memory = attempt.confirm()
    return attempt.rescue(one.changes, memory) if memory.bound_bytes <= usable else None
