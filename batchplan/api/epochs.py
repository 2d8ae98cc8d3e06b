"""One pass over a data set: how many steps each plan needs, and what papers say of such data."""

from __future__ import annotations

from typing import Any

from batchplan.api.documents import caveats_document, plain
from batchplan.learning.epoch import count_steps, few_steps
from batchplan.learning.references import BatchReferences
from batchplan.planner.plan import Plan


def epoch_steps(plan: Plan, tokens: int) -> int:
    """Return the optimizer steps of one epoch, its last short one included."""
    return count_steps(data_tokens=tokens, tokens_per_step=plan.batch.global_batch_tokens)


def epoch_document(
    plan: Plan, tokens: int, references: BatchReferences, *, time_share: float, fill: float
) -> dict[str, Any]:
    """Return the length of one epoch under a plan, and what is wrong with it.

    ``tokens`` and the plan's count padding; ``fill`` is the share of both that is none.
    """
    steps, held = epoch_steps(plan, tokens), round(tokens * fill)
    return {
        "tokens": held,
        "steps": steps,
        "seconds": None if plan.step_time is None else steps * plan.step_time.mid * time_share,
        "batch_references": plain(references),
        "caveats": caveats_document(few_steps(steps=steps, data_tokens=held)),
    }
