"""Trainers: what each does by default, what each can realise, and its config as text."""

from batchplan.trainers.defaults import TRAINERS, Default, settle, trainer_defaults
from batchplan.trainers.emitted import EmittedFile, Job, emit
from batchplan.trainers.realise import obstacles, realisable_shardings

__all__ = [
    "TRAINERS",
    "Default",
    "EmittedFile",
    "Job",
    "emit",
    "obstacles",
    "realisable_shardings",
    "settle",
    "trainer_defaults",
]
