"""Trainers: what each does by default, what each can realise, and its config as text."""

from batchplan.trainers.defaults import TRAINERS, Default, settle, trainer_defaults
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import TrainerFormat, format_of
from batchplan.trainers.reading import Read, Reading
from batchplan.trainers.realise import (
    no_sharding,
    obstacles,
    preferred_numerics,
    realisable_shardings,
    realised,
    refusals,
)
from batchplan.trainers.writing import emit

__all__ = [
    "TRAINERS",
    "Default",
    "EmittedFile",
    "Job",
    "Read",
    "Reading",
    "TrainerFormat",
    "emit",
    "format_of",
    "no_sharding",
    "obstacles",
    "preferred_numerics",
    "realisable_shardings",
    "realised",
    "refusals",
    "settle",
    "trainer_defaults",
]
