"""What would make it fit, smaller or faster: a table of changes, each really priced.

A change is offered only if it changes the outcome, and a set of changes only if all are needed.
"""

from batchplan.planner.rescue.attempt import MOST_RESCUES
from batchplan.planner.rescue.ladder import ladder
from batchplan.planner.rescue.probe import MOST_TRACES
from batchplan.planner.rescue.savings import savings
from batchplan.planner.rescue.sets import rescues
from batchplan.planner.rescue.speed import speedups

__all__ = ["MOST_RESCUES", "MOST_TRACES", "ladder", "rescues", "savings", "speedups"]
