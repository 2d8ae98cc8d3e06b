"""Gradients are cleared once per step, after it or before the first backward."""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.checker.loop.events import Event, Kind, Role
from batchplan.checker.loop.rules.rule import LoopRule, Said, once_per_step, times
from batchplan.checker.loop.windows import Style, Window
from batchplan.configfile import Severity


def missing(window: Window) -> Iterator[Said]:
    """Look for gradients that are never cleared."""
    if window.of(Kind.ZERO_GRAD, Kind.HIDDEN):
        return
    step = window.steps[0]
    if step.role is Role.ENGINE:
        return  # clears them itself
    yield Said(
        line=step.line,
        text="The loop never clears the gradients: every step adds to those of all steps before.",
        fix=f"Add `{step.target}.zero_grad(set_to_none=True)` after line {step.line}.",
    )


def _erased_before(window: Window, zero: Event) -> Event | None:
    """Return the step whose gradients are surely gone when it runs."""
    at = window.position(zero)
    if at in window.inner or (zero.role is Role.OPTIMIZER and zero.target != _target(window)):
        return None
    before = [b for b in window.backwards if window.together(b, zero)]
    for step in window.steps:
        behind = window.position(step)
        if not (at < behind and set(zero.guards) <= set(step.guards)):
            continue
        last = max((window.position(b) for b in before if window.position(b) < behind), default=-1)
        if -1 < last < at:
            return step
    return None


def _target(window: Window) -> str:
    return window.steps[0].target


def before_step(window: Window) -> Iterator[Said]:
    """Look for gradients that are cleared before they are used."""
    for zero in window.of(Kind.ZERO_GRAD):
        step = _erased_before(window, zero)
        if step is not None:
            yield Said(
                line=zero.line,
                text=f"`{zero.written}` erases the gradients before `{step.written}` on line "
                f"{step.line} uses them: the step trains nothing.",
                fix=f"Move it behind line {step.line}.",
            )


def every_micro_batch(window: Window) -> Iterator[Said]:
    """Look for gradients that are cleared before they are all there."""
    if not window.has_one_backward:
        return
    for zero in window.of(Kind.ZERO_GRAD):
        # accelerate's optimizer knows when to skip it; a model does not.
        skips = window.style is Style.ACCELERATE and zero.role is Role.OPTIMIZER
        is_fault = window.accumulates or (window.style is Style.ACCELERATE and not skips)
        if is_fault and window.each(zero) and _erased_before(window, zero) is None:
            yield Said(
                line=zero.line,
                text=f"`{zero.written}` runs at every micro-batch: a step sees the last one only, "
                f"and the batch is {times(window.accum_steps)} smaller than meant.",
                fix=f"Move it {once_per_step(window)}, behind it.",
            )


ZEROING_RULES = (
    LoopRule(
        code="zero-grad-missing",
        severity=Severity.ERROR,
        title="gradients never cleared",
        look=missing,
    ),
    LoopRule(
        code="zero-grad-before-step",
        severity=Severity.ERROR,
        title="gradients cleared between backward and step",
        look=before_step,
    ),
    LoopRule(
        code="zero-grad-every-micro-batch",
        severity=Severity.ERROR,
        title="gradients cleared at every micro-batch",
        look=every_micro_batch,
    ),
)
