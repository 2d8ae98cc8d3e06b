"""Every rule, by subject; a rule is one small function that says where it looks and why."""

from __future__ import annotations

from batchplan.checker.rule import Rule
from batchplan.checker.rules import (
    adapters,
    attention,
    batch,
    buckets,
    checkpointing,
    keys,
    numerics,
    rates,
    sharding,
    values,
)

RULES: tuple[Rule, ...] = (
    *keys.RULES,
    *values.RULES,
    *batch.RULES,
    *rates.RULES,
    *numerics.RULES,
    *adapters.RULES,
    *sharding.RULES,
    *buckets.RULES,
    *checkpointing.RULES,
    *attention.RULES,
)
"""In the order in which findings of one severity and line are told."""
