"""What a trainer's config makes of a run, and what is wrong with it; nothing is ever executed."""

from batchplan.checker.detect import detect_trainer
from batchplan.checker.examine import examine
from batchplan.checker.reconstruct import Run, reconstruct
from batchplan.checker.rule import Rule
from batchplan.checker.rules import RULES
from batchplan.checker.subject import Subject

__all__ = [
    "RULES",
    "Rule",
    "Run",
    "Subject",
    "detect_trainer",
    "examine",
    "reconstruct",
]
