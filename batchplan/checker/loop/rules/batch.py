"""K micro-batches make a step: all of them, no more, and the last ones too."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchplan.checker.loop.events import Amount, Event, Role
from batchplan.checker.loop.losses import divisions
from batchplan.checker.loop.program import is_accum_name
from batchplan.checker.loop.rules.rule import LoopRule, Said, steps_text
from batchplan.checker.loop.windows import (
    Style,
    Window,
    accelerator_is_silent,
    accelerator_steps,
    engine_steps,
)
from batchplan.configfile import Severity

SYNC_WORDS = {"accumulate", "sync_gradients", "no_sync", "_do_sync"}
"""Names without which accelerate never skips a step."""


def every_micro_batch(window: Window) -> Iterator[Said]:
    """Look for a K that only makes gradients small."""
    if window.style is not Style.PLAIN:
        return
    step = window.steps[0]
    for backward in window.backwards:
        amount = _divisor(backward)
        if amount is not None:
            yield _steps_each(step, f"The loss is divided by {steps_text(amount)}")
            return
        if backward.role is Role.ACCELERATOR and not SYNC_WORDS & window.program.mentions:
            given = accelerator_steps(window.program)
            if given is not None and given.value != 1:
                yield _steps_each(step, f"The accelerator divides the loss by {steps_text(given)}")
                return


def _divisor(backward: Event) -> Amount | None:
    """Return the number of micro-batches that a loss is divided by, or None."""
    if backward.loss is None:
        return None
    named = [f.amount for f in backward.loss.factors if f.divides and is_accum_name(f.amount.text)]
    is_left = (a for a in named if a.value != 1 and divisions(backward.loss, a, backward.guards))
    return next(is_left, None)


def _steps_each(step: Event, what: str) -> Said:
    return Said(
        line=step.line,
        text=f"{what}, but `{step.written}` runs at every micro-batch: nothing is accumulated.",
        fix="Step once in K micro-batches (`if (i + 1) % K == 0:`), or do not divide."
        if "accelerator" not in what
        else "Put the iteration under `with accelerator.accumulate(model):`.",
    )


def never_used(window: Window) -> Iterator[Said]:
    """Look for a K that is declared and read by nobody."""
    program = window.program
    is_idle = window.style is Style.ACCELERATE and accelerator_is_silent(program)
    if window.style is not Style.PLAIN and not is_idle:
        return
    read = _read(program.tree)
    for name, value in program.assigned.items():
        if not is_accum_name(name) or name in read:
            continue
        if isinstance(value, ast.Constant) and isinstance(value.value, int) and value.value > 1:
            where = (
                f"Accelerator(gradient_accumulation_steps={name})"
                if is_idle
                else f"`if (i + 1) % {name} == 0:` around the step, and divide the loss by it"
            )
            yield Said(
                line=value.lineno,
                text=f"{name} = {value.value} is never used: `{window.steps[0].written}` on line "
                f"{window.steps[0].line} runs at every micro-batch.",
                fix=f"Use it ({where}), or take it out.",
            )


def _read(tree: ast.Module) -> set[str]:
    """Return the dotted names that a file reads, other than to print them."""
    printed = {
        id(part)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "print"
        for part in ast.walk(call)
    }
    return {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and id(node) not in printed
    }


def accumulated_twice(window: Window) -> Iterator[Said]:
    """Look for two Ks that multiply."""
    step, boundary = window.steps[0], window.boundary
    engine = engine_steps(window.program)
    if step.role is not Role.ENGINE or boundary is None or boundary.is_managed or engine is None:
        return
    if engine.value is not None and engine.value > 1 and boundary.accum_steps.value != 1:
        yield Said(
            line=step.line,
            text=f"`{step.written}` counts to gradient_accumulation_steps = {engine.value:g} by "
            f"itself, and runs once in {steps_text(boundary.accum_steps)} micro-batches: both "
            "multiply.",
            fix=f"Call `{step.written}` at every micro-batch.",
        )


def _goes_over_data(window: Window) -> bool:
    """Whether the micro-batches are counted anew in every pass over the data."""
    iteration, boundary = window.loop.iteration, window.boundary
    return (
        window.style is Style.GUARDED
        and boundary is not None
        and bool(iteration.loader and iteration.index)
        and boundary.counters == {iteration.index}
    )


def _takes_last(window: Window) -> bool:
    """Whether a shorter last window is stepped too."""
    unconditional = [
        guard
        for step in window.steps
        for guard in window.varying(step)
        if guard.boundary is None or guard.boundary.handles_last
    ]
    return window.steps_after or bool(unconditional)


def last_dropped(window: Window) -> Iterator[Said]:
    """Look for micro-batches at the end of the data which no step uses."""
    steps = window.accum_steps
    if steps is None or not _goes_over_data(window) or _takes_last(window):
        return
    loop = window.loop.iteration
    yield Said(
        line=window.steps[0].line,
        text=f"Where {loop.loader} has no multiple of {steps_text(steps)} micro-batches, the last "
        "ones make no step; their gradients are lost, or go into the next epoch's first.",
        fix=f"Step at the end too: `or {loop.index} + 1 == len({loop.loader})`, with the loss "
        "divided by the micro-batches that are left.",
    )


def last_scaled_by_k(window: Window) -> Iterator[Said]:
    """Look for a short last window that is divided by the whole K."""
    steps = window.accum_steps
    if steps is None or not _goes_over_data(window) or not _takes_last(window):
        return
    for backward in window.backwards[:1]:
        found = divisions(backward.loss, steps, backward.guards) if backward.loss else []
        if found:
            yield Said(
                line=found[-1].line,
                text=f"The last window of an epoch may be shorter, and is divided by "
                f"{steps_text(steps)} all the same: its step is too small.",
                fix="Divide by the number of micro-batches in this window.",
            )


BATCH_RULES = (
    LoopRule(
        code="step-every-micro-batch",
        severity=Severity.ERROR,
        title="optimizer stepped at every micro-batch",
        look=every_micro_batch,
    ),
    LoopRule(
        code="accum-never-used",
        severity=Severity.ERROR,
        title="accumulation steps declared but never used",
        look=never_used,
    ),
    LoopRule(
        code="accumulated-twice",
        severity=Severity.ERROR,
        title="accumulation steps multiply",
        look=accumulated_twice,
    ),
    LoopRule(
        code="last-window-dropped",
        severity=Severity.NOTE,
        title="last micro-batches of an epoch unused",
        look=last_dropped,
    ),
    LoopRule(
        code="short-window-scaled",
        severity=Severity.NOTE,
        title="short last window divided by the whole K",
        look=last_scaled_by_k,
    ),
)
