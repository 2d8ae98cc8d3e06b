"""From a plan to the files of a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from batchplan.errors import SpecError
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import format_of
from batchplan.trainers.realise import obstacles


def emit(
    trainer: str, job: Job, *, versions: Mapping[str, str] = MappingProxyType({})
) -> tuple[EmittedFile, ...]:
    """Return the config files that make ``trainer`` run the plan, the main one first.

    Raises:
        SpecError: when the trainer is unknown or cannot do what the plan says.
    """
    problems = obstacles(trainer, job.plan.recipe, versions=versions)
    if problems:
        raise SpecError(f"{trainer} cannot run this plan: {'; '.join(problems)}.")
    return format_of(trainer).write(job)
