"""The loss of a micro-batch is divided by K, once."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchplan.checker.loop.events import Event, Factor, Kind, Reduction, Role
from batchplan.checker.loop.losses import divisions, may_be_scaled
from batchplan.checker.loop.program import is_accum_name
from batchplan.checker.loop.rules.rule import LoopRule, Said, steps_text, times
from batchplan.checker.loop.windows import (
    Style,
    Window,
    accelerator_is_silent,
    accelerator_steps,
)
from batchplan.configfile import Severity

TOKEN_LEVEL = ("ignore_index", "-100", "attention_mask", "pad_token", "padding=")
"""Words of a file whose losses are means over tokens, of which sequences have unequal numbers."""


def _library_divides(window: Window, backward: Event) -> bool | None:
    """Whether the backward divides by K by itself; None where the file does not tell.

    accelerate's and DeepSpeed's do (accelerate 1.x ``Accelerator.backward``, deepspeed 0.19
    ``DeepSpeedEngine.backward``); Fabric's does not (lightning 2.6 ``Fabric.backward``).
    """
    if backward.role is Role.ENGINE:
        return True if window.style is Style.ENGINE else None
    if backward.role is not Role.ACCELERATOR:
        return False
    if window.style is Style.ACCELERATE or accelerator_steps(window.program) is not None:
        return True
    return False if accelerator_is_silent(window.program) else None


def _accum_divisions(window: Window, backward: Event) -> list[Factor]:
    """Return the divisions by K, under whatever name the file has for it."""
    if backward.loss is None:
        return []
    named = [f.amount for f in backward.loss.factors if f.divides and is_accum_name(f.amount.text)]
    amounts = [*([window.accum_steps] if window.accum_steps else []), *named]
    found = [divisions(backward.loss, amount, backward.guards) for amount in amounts]
    return max(found, key=len, default=[])


def _divides_elsewhere(window: Window) -> bool:
    """Whether gradients or the learning rate are divided instead."""
    steps = window.accum_steps
    in_rate = steps is not None and any(
        steps.text in {ast.unparse(part) for part in ast.walk(keyword.value)}
        for call in window.program.calls
        for keyword in call.keywords
        if keyword.arg == "lr"
    )
    return bool(window.of(Kind.SCALE_GRADS)) or in_rate


def missing(window: Window) -> Iterator[Said]:
    """Look for gradients that are K times too large."""
    steps = window.accum_steps
    if not window.accumulates or steps is None or _divides_elsewhere(window):
        return
    bare = [
        b
        for b in window.backwards
        if b.loss is not None
        and _library_divides(window, b) is False
        and not may_be_scaled(b.loss, steps, b.guards)
    ]
    if not bare or (len(bare) < len(window.backwards) and not window.has_one_backward):
        return
    first = bare[0]
    is_mean = first.loss is not None and first.loss.reduction is Reduction.MEAN
    is_sure = is_mean and first.role is not Role.ACCELERATOR
    unless = "" if is_mean else ", if the loss is a mean"
    yield Said(
        line=first.line,
        text=f"{first.passed} is never divided by {steps_text(steps)}: the gradients of a step are "
        f"{times(steps)} too large{unless}.",
        fix=f"Write `{_divided(first, steps.text)}`.",
        severity=Severity.ERROR if is_sure else Severity.WARNING,
    )


def _divided(backward: Event, steps: str) -> str:
    quotient = f"{backward.passed} / {steps}"
    if backward.written.startswith(f"{backward.passed}.backward"):
        quotient = f"({quotient})"
    return backward.written.replace(backward.passed, quotient, 1)


def twice(window: Window) -> Iterator[Said]:
    """Look for gradients that are K times too small."""
    if window.style in (Style.PLAIN, Style.UNKNOWN):
        return
    for backward in window.backwards:
        found = _accum_divisions(window, backward)
        by_library = _library_divides(window, backward)
        if not found or by_library is None or len(found) + by_library < 2:
            continue
        amount = found[-1].amount
        other = (
            f"{backward.target}.backward divides by it too"
            if by_library
            else f"line {found[0].line} did so before"
        )
        yield Said(
            line=found[-1].line,
            text=f"The loss is divided by {steps_text(amount)} twice ({other}): the gradients are "
            f"{times(amount)} too small.",
            fix=f"Take the division by {amount.text} out.",
        )


def mean_of_means(window: Window) -> Iterator[Said]:
    """Look for token means that are averaged over micro-batches."""
    if window.style in (Style.PLAIN, Style.UNKNOWN):
        return
    if not any(word in window.program.text for word in TOKEN_LEVEL):
        return
    for backward in window.backwards:
        loss = backward.loss
        if loss is None or loss.is_opaque or loss.reduction in (Reduction.SUM, Reduction.NONE):
            continue
        found = _accum_divisions(window, backward)
        if not found and not _library_divides(window, backward):
            continue
        yield Said(
            line=found[-1].line if found else backward.line,
            text="A mean over tokens is averaged over micro-batches, so a token in a short "
            "micro-batch weighs more than one in a long one. It is exact only where all have "
            "the same number of target tokens (packed, or one length).",
            fix="Sum the loss over tokens and divide by the target tokens (labels != -100) of all "
            f"{steps_text(window.accum_steps)} micro-batches.",
        )
        return


SCALING_RULES = (
    LoopRule(
        code="missing-loss-scaling",
        severity=Severity.ERROR,
        title="loss not divided by the accumulation steps",
        look=missing,
    ),
    LoopRule(
        code="loss-scaled-twice",
        severity=Severity.ERROR,
        title="loss divided by the accumulation steps twice",
        look=twice,
    ),
    LoopRule(
        code="mean-of-means",
        severity=Severity.NOTE,
        title="token means averaged over micro-batches",
        look=mean_of_means,
    ),
)
