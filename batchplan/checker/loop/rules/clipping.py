"""Gradients are clipped once per step, unscaled, before it; and float16 needs a scaler."""

from __future__ import annotations

import re
from collections.abc import Iterator

from batchplan.checker.loop.events import Event, Kind, Role
from batchplan.checker.loop.rules.rule import LoopRule, Said, once_per_step
from batchplan.checker.loop.windows import Style, Window
from batchplan.configfile import Severity

UNSCALES_ITSELF = {Role.ACCELERATOR, Role.FABRIC, Role.ENGINE}
"""Whose own clipping unscales first."""
LOSS_SCALING = re.compile(r"scaler|loss_?scal|scaled?_loss", re.I)
"""Names that tell of loss scaling of some kind."""


def _clips_each(window: Window, clip: Event) -> bool:
    accumulates = window.accumulates or window.style is Style.ACCELERATE
    return accumulates and clip.role is not Role.ENGINE and window.each(clip)


def per_micro_batch(window: Window) -> Iterator[Said]:
    """Look for sums of gradients that are clipped before they are complete."""
    for clip in window.of(Kind.CLIP):
        if _clips_each(window, clip):
            where = (
                f"Put it under `if {window.of(Kind.ACCUMULATE)[0].target}.sync_gradients:`."
                if window.style is Style.ACCELERATE
                else f"Move it {once_per_step(window)}, before it."
            )
            yield Said(
                line=clip.line,
                text=f"`{_short(clip)}` runs at every micro-batch: it clips the sum so far, not "
                "the gradient of the step, and early micro-batches are shrunk more often.",
                fix=where,
            )


def after_step(window: Window) -> Iterator[Said]:
    """Look for clipping that comes too late."""
    clips = [clip for clip in window.of(Kind.CLIP) if not _clips_each(window, clip)]
    if not clips or window.style is Style.UNKNOWN:
        return
    first = min(map(window.position, clips))
    steps = [s for s in window.steps if window.together(s, clips[0])]
    between = [b for b in window.backwards if window.position(b) > window.position(window.steps[0])]
    if steps and not between and all(window.position(step) < first for step in steps):
        yield Said(
            line=clips[0].line,
            text=f"`{_short(clips[0])}` runs after `{steps[0].written}` on line {steps[0].line}: "
            "it clips gradients that were used already.",
            fix=f"Move it before line {steps[0].line}.",
        )


def _scaled_clips(window: Window) -> Iterator[tuple[Event, list[Event]]]:
    """Yield the clippings of gradients a GradScaler scaled, and what unscales them."""
    scaled = [b for b in window.backwards if b.role is Role.SCALER]
    for clip in window.of(Kind.CLIP):
        if clip.role in UNSCALES_ITSELF or _clips_each(window, clip):
            continue
        if any(window.together(clip, b) for b in scaled):
            unscales = [u for u in window.of(Kind.UNSCALE) if window.together(clip, u)]
            yield clip, unscales


def without_unscale(window: Window) -> Iterator[Said]:
    """Look for a threshold that is compared with scaled gradients."""
    for clip, unscales in _scaled_clips(window):
        if not unscales and not window.of(Kind.HIDDEN):
            scaler = _scaler(window)
            yield Said(
                line=clip.line,
                text=f"`{_short(clip)}` clips gradients that {scaler} has multiplied by its scale "
                "(65536 at first), so nearly all of them.",
                fix=f"Call `{scaler}.unscale_({window.steps[0].target})` before line {clip.line}.",
            )


def before_unscale(window: Window) -> Iterator[Said]:
    """Look for the same where they are unscaled too late."""
    for clip, unscales in _scaled_clips(window):
        at = window.position(clip)
        if unscales and all(window.position(unscale) > at for unscale in unscales):
            yield Said(
                line=clip.line,
                text=f"`{_short(clip)}` runs before `{unscales[0].written}` on line "
                f"{unscales[0].line}: it clips gradients that still have the scale in them.",
                fix=f"Move it behind line {unscales[0].line}.",
            )


def unscale_each(window: Window) -> Iterator[Said]:
    """Look for gradients that are unscaled more than once in a step."""
    for unscale in window.of(Kind.UNSCALE):
        if window.accumulates and window.each(unscale):
            yield Said(
                line=unscale.line,
                text=f"`{unscale.written}` runs at every micro-batch; a GradScaler raises "
                "RuntimeError at the second before an update.",
                fix=f"Move it {once_per_step(window)}, before it.",
            )


def no_scaler(window: Window) -> Iterator[Said]:
    """Look for float16 gradients that underflow."""
    libraries = UNSCALES_ITSELF | {Role.SCALER}
    if any(b.role in libraries for b in window.backwards):
        return
    if any(LOSS_SCALING.search(name) for name in window.program.mentions):
        return
    for autocast in window.of(Kind.AUTOCAST_FP16)[:1]:
        yield Said(
            line=autocast.line,
            text=f"`{autocast.written}` computes in float16 and nothing scales the loss: small "
            "gradients become 0.",
            fix="Use bfloat16, or torch.amp.GradScaler around backward and step.",
        )


def _scaler(window: Window) -> str:
    backward = next(b for b in window.backwards if b.role is Role.SCALER)
    return backward.target.split(".scale(", 1)[0]


def _short(event: Event) -> str:
    return event.written if len(event.written) <= 60 else event.written.split("(", 1)[0] + "(...)"


CLIPPING_RULES = (
    LoopRule(
        code="clip-per-micro-batch",
        severity=Severity.ERROR,
        title="gradients clipped at every micro-batch",
        look=per_micro_batch,
    ),
    LoopRule(
        code="clip-after-step",
        severity=Severity.ERROR,
        title="gradients clipped after the step",
        look=after_step,
    ),
    LoopRule(
        code="clip-without-unscale",
        severity=Severity.ERROR,
        title="scaled gradients clipped",
        look=without_unscale,
    ),
    LoopRule(
        code="clip-before-unscale",
        severity=Severity.ERROR,
        title="gradients clipped before they are unscaled",
        look=before_unscale,
    ),
    LoopRule(
        code="unscale-per-micro-batch",
        severity=Severity.ERROR,
        title="gradients unscaled at every micro-batch",
        look=unscale_each,
    ),
    LoopRule(
        code="fp16-without-scaler",
        severity=Severity.WARNING,
        title="float16 without a GradScaler",
        look=no_scaler,
    ),
)
