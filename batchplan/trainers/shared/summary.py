"""Why a config is as it is, in the comment lines above it; the same for every trainer."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from batchplan.trainers.emitted import Job
from batchplan.trainers.format import MASTER, ZERO, TrainerFormat
from batchplan.trainers.releases import needed
from batchplan.units import format_bytes, format_count

_WIDTH = 80
"""Of a command in a comment."""


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


def header(job: Job, form: TrainerFormat, *notes: tuple[str, str]) -> Iterator[str]:
    """Yield all that stands above a config: the plan, why, what to install, and ``notes``.

    Args:
        job: the plan.
        form: the trainer's, which knows what a run must find installed.
        notes: labels and what they say; one without a label goes on with the line before.
    """
    yield from summary(job)
    yield ""
    recipe = job.plan.recipe
    if _is_sharded_alone(job):
        without = recipe.numerics.value.replace("master", "autocast")
        yield _line("Why", "ZeRO on one device, because DeepSpeed keeps the fp32 copies of 16-bit")
        yield _line("", f"weights; --numerics {without} does without it")
    packages = (one.words for one in needed(form.needs, recipe))
    yield from _wrapped("Install", f"pip install {' '.join(packages)}")
    for label, text in notes:
        yield _line(label, text)


def start(job: Job, *, data: bool = False) -> tuple[str, str]:
    """Return the note that says how to start; ``data`` where the script asks for it."""
    return "Start", f"{'DATASET=... ' if data else ''}bash {job.stem}.launch.sh"


def _wrapped(label: str, command: str) -> Iterator[str]:
    """Yield a command of the shell over as many lines as it needs."""
    first, *others = wrap(command, _WIDTH, break_long_words=False, break_on_hyphens=False)
    lines = [first, *(f"  {line}" for line in others)]
    for number, line in enumerate(lines):
        is_last = number == len(lines) - 1
        yield _line("" if number else label, line if is_last else f"{line} \\")


def _line(label: str, text: str) -> str:
    return f"{f'{label}:' if label else '':<9}{text}"


def _is_sharded_alone(job: Job) -> bool:
    recipe = job.plan.recipe
    return not job.several_devices and recipe.sharding in ZERO and recipe.numerics in MASTER
