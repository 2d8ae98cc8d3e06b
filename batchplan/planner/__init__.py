"""The search for batch configurations that fit, and for what would make one fit."""

from batchplan.planner.assemble import Question
from batchplan.planner.candidates import MICRO_BATCH_CAP, Layout, SearchSpace
from batchplan.planner.plan import Answer, Plan, Rescue
from batchplan.planner.pricing import Pricer, ProfilePricer, ProfileSource, StatesPricer
from batchplan.planner.ranking import Aim, Candidate, scores
from batchplan.planner.rescue import MOST_TRACES, savings, speedups
from batchplan.planner.search import DEFAULT_LIMIT, search, shortlist

__all__ = [
    "DEFAULT_LIMIT",
    "MICRO_BATCH_CAP",
    "MOST_TRACES",
    "Aim",
    "Answer",
    "Candidate",
    "Layout",
    "Plan",
    "Pricer",
    "ProfilePricer",
    "ProfileSource",
    "Question",
    "Rescue",
    "SearchSpace",
    "StatesPricer",
    "savings",
    "scores",
    "search",
    "shortlist",
    "speedups",
]
