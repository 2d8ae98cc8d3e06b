"""One pass over the data: its optimizer steps, and the warm-up that still suits them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from batchplan.learning.rate import LearningRate
from batchplan.spec import Caveat
from batchplan.units import format_count

WARMUP_SHARE = 10
"""Warm-up is at most one step in ten of the epoch: a choice, stated as one."""
FEWEST_STEPS = 100
"""Optimizer steps below which schedule and warm-up degenerate: a choice, stated as one."""


def count_steps(*, data_tokens: int, tokens_per_step: float) -> int:
    """Return the optimizer steps of one pass over the data, its last short one included."""
    return math.ceil(data_tokens / tokens_per_step)


def few_steps(*, steps: int, data_tokens: int) -> Iterator[Caveat]:
    """Yield a warning when one pass has fewer than ``FEWEST_STEPS`` optimizer steps."""
    if steps < FEWEST_STEPS:
        most = data_tokens // FEWEST_STEPS
        remedy = f"A batch of {format_count(most)} tokens makes {FEWEST_STEPS}." if most else ""
        yield Caveat(
            code="few-steps",
            text=f"Fewer than {FEWEST_STEPS} optimizer steps: warm-up and schedule degenerate. "
            f"{remedy}".rstrip(),
        )


def within_epoch(rate: LearningRate, *, data_tokens: int, tokens_per_step: float) -> LearningRate:
    """Return the rate for one pass over the data: its steps, and a warm-up kept to its share.

    A rate that knows its steps already comes back as it is.
    """
    if rate.steps_per_epoch is not None:
        return rate
    steps = count_steps(data_tokens=data_tokens, tokens_per_step=tokens_per_step)
    caveats = [*rate.caveats, *few_steps(steps=steps, data_tokens=data_tokens)]
    warmup, longest = rate.warmup_steps, max(1, steps // WARMUP_SHARE)
    if warmup is not None and warmup > longest:
        caveats.append(
            Caveat(
                code="warmup-shortened",
                text=f"One epoch has {steps:,} steps, so warm-up takes {longest:,} (one in "
                f"{WARMUP_SHARE}) and not {warmup:,}.",
            )
        )
        warmup = longest
    return replace(rate, steps_per_epoch=steps, warmup_steps=warmup, caveats=tuple(caveats))
