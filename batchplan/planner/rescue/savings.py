"""What would make a plan that fits smaller."""

from __future__ import annotations

from batchplan.planner.assemble import Question
from batchplan.planner.candidates import SearchSpace
from batchplan.planner.plan import Plan, Rescue
from batchplan.planner.rescue.attempt import MOST_RESCUES, begin
from batchplan.planner.rescue.changes import apply_all, as_run, changes_for
from batchplan.planner.rescue.probe import MOST_TRACES, Probe

SMALLER = 0.03
"""A peak lower by less than this share is within the estimate's own error."""


def savings(
    *, question: Question, space: SearchSpace, start: Plan, traces: int = MOST_TRACES
) -> tuple[Rescue, ...]:
    """Return single changes that are confirmed to lower the peak of a plan that fits, least first.

    Of one knob only what saves more than its weaker rows. ``traces`` bounds what is traced for it.
    """
    here = begin(question=question, space=space, start=start)
    probe = Probe(here, space, traces=traces)
    found: list[Rescue] = []
    lowest: dict[str, int] = {}
    for change in changes_for(question):
        applied = apply_all(here, [change])
        attempt = None if applied is None or not applied.keeps_the_batch else as_run(applied)
        if attempt is None:
            continue
        lower = round(lowest.get(change.knob, start.memory.peak_bytes) * (1 - SMALLER))
        if not probe.is_traced(attempt) and probe.is_hopeless(here, [change], above=lower):
            continue
        quick = probe.price(attempt)
        if quick is None or quick.peak_bytes > lower:
            continue
        memory = attempt.confirm()
        if memory.peak_bytes <= lower and memory.bound_bytes <= attempt.usable_bytes:
            lowest[change.knob] = memory.peak_bytes
            found.append(attempt.rescue([change], memory))
        if len(found) == MOST_RESCUES:
            break
    return tuple(found)
