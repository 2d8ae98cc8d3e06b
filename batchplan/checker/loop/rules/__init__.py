"""What goes wrong in training loops: one function per mistake, one row each."""

from batchplan.checker.loop.rules.batch import BATCH_RULES
from batchplan.checker.loop.rules.clipping import CLIPPING_RULES
from batchplan.checker.loop.rules.memory import MEMORY_RULES
from batchplan.checker.loop.rules.rule import LoopRule
from batchplan.checker.loop.rules.scaling import SCALING_RULES
from batchplan.checker.loop.rules.schedule import SCHEDULE_RULES
from batchplan.checker.loop.rules.zeroing import ZEROING_RULES

LOOP_RULES: tuple[LoopRule, ...] = (
    *BATCH_RULES,
    *SCALING_RULES,
    *ZEROING_RULES,
    *SCHEDULE_RULES,
    *CLIPPING_RULES,
    *MEMORY_RULES,
)

__all__ = ["LOOP_RULES", "LoopRule"]
