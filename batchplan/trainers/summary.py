"""Why a config is as it is, in the comment lines above it; the same for every trainer."""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.trainers.emitted import Job
from batchplan.units import format_bytes, format_count


def summary(job: Job) -> Iterator[str]:
    """Yield what the plan promises: device, peak, headroom, tokens a step."""
    plan, batch, recipe = job.plan, job.plan.batch, job.plan.recipe
    peak, usable = plan.memory.peak_bytes, plan.usable_bytes
    error = f"estimate +-{plan.memory.in_use_error.percent:.0f}%"
    yield f"{job.model.id}, {recipe.method.value}, on {batch.num_ranks} x {job.gpu.name}"
    yield (
        f"Peak memory {format_bytes(peak)} of {format_bytes(usable)} a device; "
        f"headroom {format_bytes(plan.headroom_bytes)} ({error})"
    )
    yield (
        f"{format_count(batch.global_batch_tokens)} tokens a step = {batch.micro_batch} x "
        f"{batch.accum_steps} x {batch.num_ranks} x {batch.seq_len} tokens"
        f"{_deviation(plan.target_deviation)}"
    )
    yield (
        f"{recipe.sharding.value}, checkpointing {recipe.checkpointing.value}, "
        f"offload {recipe.offload.value}, {recipe.optimizer.value}, {recipe.numerics.value}"
    )


def _deviation(deviation: float) -> str:
    return f", {deviation:+.2%} from the target" if deviation else ""
