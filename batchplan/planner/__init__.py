"""The search for batch configurations that fit, and for what would make one fit."""

from batchplan.planner.candidates import MICRO_BATCH_CAP, Layout, SearchSpace
from batchplan.planner.plan import Answer, Plan, Rescue
from batchplan.planner.pricing import Pricer, ProfilePricer, ProfileSource, StatesPricer
from batchplan.planner.search import DEFAULT_LIMIT, search

__all__ = [
    "DEFAULT_LIMIT",
    "MICRO_BATCH_CAP",
    "Answer",
    "Layout",
    "Plan",
    "Pricer",
    "ProfilePricer",
    "ProfileSource",
    "Rescue",
    "SearchSpace",
    "StatesPricer",
    "search",
]
