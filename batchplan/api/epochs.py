"""One pass over a data set: how many steps it has, and the warm-up that still suits them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from batchplan.api.documents import caveats_document
from batchplan.planner.plan import Answer, Plan, Rescue
from batchplan.spec import Caveat

WARMUP_SHARE = 10
"""Warm-up is at most one step in ten of the epoch."""
FEWEST_STEPS = 100
"""Optimizer steps below which schedule and warm-up degenerate: a choice, stated as one."""


def epoch_steps(plan: Plan, tokens: int) -> int:
    """Return the optimizer steps of one epoch, its last short one included."""
    return -(-tokens // plan.batch.global_batch_tokens)


def epoch_document(plan: Plan, tokens: int) -> dict[str, Any]:
    """Return the length of one epoch under a plan, and what is wrong with it."""
    steps = epoch_steps(plan, tokens)
    return {
        "tokens": tokens,
        "steps": steps,
        "seconds": None if plan.step_time is None else steps * plan.step_time.mid,
        "caveats": caveats_document(_too_short(steps)),
    }


def _too_short(steps: int) -> Iterable[Caveat]:
    if steps < FEWEST_STEPS:
        yield Caveat(
            code="few-steps",
            text=f"Fewer than {FEWEST_STEPS} optimizer steps: warm-up and schedule degenerate. "
            "A smaller batch makes more.",
        )


def within_epoch(found: Answer, tokens: int) -> Answer:
    """Return the answer with every plan's warm-up kept to its share of the epoch."""

    def shortened(plan: Plan) -> Plan:
        return _shortened(plan, tokens)

    def rescued(rescues: Iterable[Rescue]) -> tuple[Rescue, ...]:
        return tuple(replace(rescue, plan=shortened(rescue.plan)) for rescue in rescues)

    return replace(
        found,
        plans=tuple(shortened(plan) for plan in found.plans),
        closest=None if found.closest is None else shortened(found.closest),
        ladder=rescued(found.ladder),
        rescues=rescued(found.rescues),
    )


def _shortened(plan: Plan, tokens: int) -> Plan:
    rate, steps = plan.learning_rate, epoch_steps(plan, tokens)
    longest = max(1, steps // WARMUP_SHARE)
    if rate.warmup_steps is None or rate.warmup_steps <= longest:
        return plan
    caveat = Caveat(
        code="warmup-shortened",
        text=f"One epoch has {steps:,} steps, so warm-up takes {longest:,} (one in "
        f"{WARMUP_SHARE}) and not {rate.warmup_steps:,}.",
    )
    shorter = replace(rate, warmup_steps=longest, caveats=(*rate.caveats, caveat))
    return replace(plan, learning_rate=shorter)
