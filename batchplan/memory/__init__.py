"""The memory arithmetic: a bill of named terms and a timeline, in exact bytes."""

from batchplan.memory.estimate import confirm, estimate, estimate_states, price
from batchplan.memory.quick import QuickPrice
from batchplan.memory.setting import Setting, prepare
from batchplan.memory.terms import ErrorBand, Estimate, Moment, Term

__all__ = [
    "ErrorBand",
    "Estimate",
    "Moment",
    "QuickPrice",
    "Setting",
    "Term",
    "confirm",
    "estimate",
    "estimate_states",
    "prepare",
    "price",
]
