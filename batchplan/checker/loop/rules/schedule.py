"""The learning-rate schedule moves once per optimizer step, after it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchplan.checker.loop.events import Event, Kind
from batchplan.checker.loop.program import dotted, is_accum_name
from batchplan.checker.loop.rules.rule import LoopRule, Said, once_per_step, steps_text, times
from batchplan.checker.loop.windows import Style, Window
from batchplan.configfile import Severity


def _prepared(window: Window) -> set[str] | None:
    """Return what ``accelerator.prepare`` is given; None where the file does not tell."""
    calls = list(window.program.made_by("prepare"))
    arguments = [argument for call in calls for argument in call.args]
    if not calls or any(isinstance(argument, ast.Starred) for argument in arguments):
        return None
    return set(map(dotted, arguments))


def _is_unprepared(window: Window, schedule: Event) -> bool:
    """Whether a scheduler that the file makes is surely not in accelerate's hands."""
    prepared = _prepared(window)
    is_made_here = schedule.target in window.program.roles
    return prepared is not None and is_made_here and schedule.target not in prepared


def _counts_steps(window: Window, schedule: Event) -> bool:
    """Whether the scheduler was told a length in optimizer steps, one that names K."""
    made = window.program.assigned.get(schedule.target)
    names = {ast.unparse(part) for part in ast.walk(made)} if made is not None else set()
    steps = window.accum_steps
    return bool(steps and steps.text in names) or any(is_accum_name(name) for name in names)


def per_micro_batch(window: Window) -> Iterator[Said]:
    """Look for a schedule that runs K times too fast."""
    for schedule in window.of(Kind.SCHEDULE):
        by_hand = window.accumulates
        if window.style is Style.ACCELERATE:
            by_hand = _is_unprepared(window, schedule)
        if by_hand and window.each(schedule):
            steps = window.accum_steps
            yield Said(
                line=schedule.line,
                text=f"`{schedule.written}` runs at every micro-batch, the optimizer once in "
                f"{steps_text(steps)}: the schedule moves {times(steps)} per step, and a length "
                "counted in steps is over too early.",
                fix=f"Move it {once_per_step(window)}."
                if window.style is not Style.ACCELERATE
                else f"Give {schedule.target} to accelerator.prepare.",
                severity=Severity.ERROR if _counts_steps(window, schedule) else None,
            )


def before_step(window: Window) -> Iterator[Said]:
    """Look for a schedule that is one ahead of the optimizer."""
    schedules, steps = window.of(Kind.SCHEDULE), window.steps
    if not schedules or window.style in (Style.ENGINE, Style.UNKNOWN):
        return
    first = schedules[0]
    if window.accumulates and window.each(first):
        return
    last = max(map(window.position, schedules))
    if last < min(map(window.position, steps)) and window.together(first, steps[0]):
        yield Said(
            line=first.line,
            text=f"`{first.written}` runs before `{steps[0].written}` on line {steps[0].line}: the "
            "first value of the schedule is never used.",
            fix=f"Move it behind line {steps[0].line}.",
        )


def prepared(window: Window) -> Iterator[Said]:
    """Look for a schedule that accelerate steps once per process."""
    given = _prepared(window) or set()
    for schedule in window.of(Kind.SCHEDULE):
        if window.style is Style.ACCELERATE and schedule.target in given:
            yield Said(
                line=schedule.line,
                text=f"accelerate steps {schedule.target} once per process at every optimizer step "
                "(unless split_batches is set), and not between.",
                fix="Give the scheduler a length of optimizer steps × processes.",
            )


SCHEDULE_RULES = (
    LoopRule(
        code="scheduler-per-micro-batch",
        severity=Severity.WARNING,
        title="schedule stepped at every micro-batch",
        look=per_micro_batch,
    ),
    LoopRule(
        code="scheduler-before-step",
        severity=Severity.WARNING,
        title="schedule stepped before the optimizer",
        look=before_step,
    ),
    LoopRule(
        # accelerate 1.x, scheduler.py, AcceleratedScheduler.step
        code="prepared-scheduler",
        severity=Severity.NOTE,
        title="prepared schedule steps once per process",
        look=prepared,
    ),
)
