"""What a trainer's config says, in our words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from batchplan.configfile import Finding
from batchplan.trainers.policies.rows import Value

BESIDE_RECIPE = (
    "model",
    "seq_len",
    "micro_batch",
    "accum_steps",
    "global_batch",
    "num_ranks",
    "num_nodes",
    "learning_rate",
    "beta2",
    "schedule",
    "warmup_steps",
    "warmup_ratio",
    "max_steps",
    "epochs",
    "packing",
)
"""What a config may say beside the fields of ``Recipe``; ``global_batch`` counts sequences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One thing that a config says."""

    option: str
    """A field of ``Recipe``, or one of ``BESIDE_RECIPE``."""
    value: Value
    key: str
    """Where it says so, dotted; the first of several keys that say it together."""
    file: str = ""
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All that the files of one run say."""

    trainer: str
    reads: tuple[Read, ...]
    problems: tuple[Finding, ...] = ()
    """Mistakes that only the reader of this trainer can know."""

    @property
    def values(self) -> dict[str, Value]:
        """By our option names; of two files that say the same, the last."""
        return {read.option: read.value for read in self.reads}

    def of(self, option: str) -> Read | None:
        """Return where an option was read, or None."""
        return next((read for read in reversed(self.reads) if read.option == option), None)


def only_last(reads: Iterable[Read]) -> tuple[Read, ...]:
    """Return one read for every option: the last."""
    return tuple({read.option: read for read in reads}.values())
