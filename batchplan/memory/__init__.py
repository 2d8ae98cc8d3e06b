"""The memory arithmetic: a bill of named terms and a timeline, in exact bytes."""

from batchplan.memory.estimate import estimate, estimate_states, price
from batchplan.memory.setting import Setting, prepare
from batchplan.memory.terms import Estimate, Moment, Term

__all__ = [
    "Estimate",
    "Moment",
    "Setting",
    "Term",
    "estimate",
    "estimate_states",
    "prepare",
    "price",
]
