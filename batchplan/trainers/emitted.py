"""What an emitter takes and gives, and the table of emitters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from batchplan.errors import SpecError
from batchplan.planner.plan import Plan
from batchplan.spec import Gpu, ModelInfo
from batchplan.trainers.defaults import check_trainer
from batchplan.trainers.realise import obstacles


@dataclass(frozen=True, slots=True, kw_only=True)
class EmittedFile:
    """One file of a trainer's configuration."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A plan and what it is about: all an emitter may use."""

    plan: Plan
    model: ModelInfo
    gpu: Gpu
    stem: str = "plan"
    """File name without suffix; files beside it start with it."""
    epoch_steps: int | None = None
    """Optimizer steps of one epoch; None leaves the length to the trainer."""
    epochs: float = 1
    """Passes over the data that are wanted, where the steps of one are known."""


_EMITTERS = {"hf-trainer": "batchplan.trainers.hf_trainer"}
_Emitter = Callable[[Job], tuple[EmittedFile, ...]]


def emit(trainer: str, job: Job) -> tuple[EmittedFile, ...]:
    """Return the config files that make ``trainer`` run the plan, the main one first.

    Raises:
        SpecError: when the trainer is unknown or cannot do what the plan says.
    """
    check_trainer(trainer)
    problems = obstacles(trainer, job.plan.recipe)
    if problems:
        raise SpecError(f"{trainer} cannot run this plan: {'; '.join(problems)}.")
    emitter = cast("_Emitter", import_module(_EMITTERS[trainer]).emit)
    return emitter(job)
