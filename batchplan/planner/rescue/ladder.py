"""One change on top of another until it fits."""

from __future__ import annotations

from dataclasses import replace

from batchplan.planner.assemble import Question
from batchplan.planner.candidates import SearchSpace
from batchplan.planner.explain import MATTERS
from batchplan.planner.plan import Plan, Rescue
from batchplan.planner.rescue.attempt import Attempt, begin
from batchplan.planner.rescue.changes import Change, apply_all, as_run, changes_for
from batchplan.planner.rescue.probe import MOST_TRACES, Probe


def ladder(*, question: Question, space: SearchSpace, start: Plan) -> tuple[Rescue, ...]:
    """Return changes each on top of the one before, until the first that fits.

    Every rung is the least change that lowers the peak, found anew from the top of the table: what
    did not help before may help now. ``change`` holds the rung's own change; what it saves and
    costs is told against the start.
    """
    attempt = begin(question=question, space=space, start=start)
    probe = Probe(attempt, space, traces=MOST_TRACES)
    peak_bytes = attempt.price().peak_bytes
    rungs: list[Rescue] = []
    unused = list(changes_for(question))
    fits = start.fits
    while not fits:
        found = _next(probe, attempt, unused, peak_bytes)
        if found is None:
            break
        change, attempt, peak_bytes = found
        unused.remove(change)
        rungs.append(attempt.rescue([change], attempt.confirm()))
        fits = rungs[-1].plan.fits
    return tuple(rungs)


def _next(
    probe: Probe, attempt: Attempt, unused: list[Change], peak_bytes: int
) -> tuple[Change, Attempt, int] | None:
    """Return the least change that lowers the quick price, with what it leads to."""
    here = replace(attempt, options=())
    lower = round(peak_bytes * (1 - MATTERS))
    for change in unused:
        applied = apply_all(here, [change])
        tried = None if applied is None or not applied.keeps_the_batch else as_run(applied)
        if tried is None:
            continue
        if not probe.is_traced(tried) and probe.is_hopeless(here, [change], above=lower):
            continue
        quick = probe.price(tried)
        if quick is not None and quick.peak_bytes < lower:
            return change, tried, quick.peak_bytes
    return None
