"""From a plan to the files of a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from batchplan.errors import SpecError
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import format_of
from batchplan.trainers.realise import obstacles
from batchplan.trainers.shared.auto_class import MASKED, SEQ2SEQ, auto_class

_NOT_CAUSAL = (MASKED, SEQ2SEQ)


def emit(
    trainer: str, job: Job, *, versions: Mapping[str, str] = MappingProxyType({})
) -> tuple[EmittedFile, ...]:
    """Return the config files that make ``trainer`` run the plan, the main one first.

    Raises:
        SpecError: when the trainer is unknown, or cannot train the model or do what the plan says.
    """
    form = format_of(trainer)
    if form.trains_causal_only and auto_class(job.model.architecture) in _NOT_CAUSAL:
        raise SpecError(
            f"{trainer} trains models that predict the next token alone, and {job.model.id} is a "
            f"{job.model.architecture} (--trainer hf-trainer takes it)."
        )
    plan = job.plan
    problems = obstacles(trainer, plan.recipe, versions=versions, num_ranks=plan.batch.num_ranks)
    if problems:
        raise SpecError(f"{trainer} cannot run this plan: {'; '.join(problems)}.")
    return form.write(job)
