"""What the planner answers with: plans, rescues and the closest miss."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from batchplan.learning.advice import LearningRate
from batchplan.memory import Estimate
from batchplan.planner.explain import PeakExplanation
from batchplan.spec import Batch, Caveat, Recipe
from batchplan.throughput.step import StepTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to train that was priced: recipe, batch, memory, time and learning rate."""

    recipe: Recipe
    """With sharding, checkpointing and offload decided."""
    batch: Batch
    num_nodes: int
    memory: Estimate
    usable_bytes: int
    step_time: StepTime | None
    """None when the GPU's rates are unknown (a bare memory size)."""
    target_deviation: float
    """(reached tokens - target) / target; 0 without a target."""
    learning_rate: LearningRate
    peak_bytes_without_accumulation: int | None = None
    """Peak of the same global batch in one micro-batch per rank; None at K = 1 or unknown."""
    peak: PeakExplanation | None = None
    """Which instant binds and what would move it; None where activations are not counted."""
    caveats: tuple[Caveat, ...] = ()

    @property
    def headroom_bytes(self) -> int:
        """Usable bytes less the peak; negative when it does not fit."""
        return self.usable_bytes - self.memory.peak_bytes

    @property
    def fits(self) -> bool:
        """Whether the 95 % bound of the peak is within the usable bytes."""
        return self.memory.bound_bytes <= self.usable_bytes

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second over all ranks at the middle step time."""
        return (
            None if self.step_time is None else self.batch.global_batch_tokens / self.step_time.mid
        )


class Semantics(StrEnum):
    """What a change does to the training itself, least first."""

    SAME = "same"
    ROUNDING = "same within rounding"
    OPTIMIZER = "different optimizer"
    BASE = "frozen weights in other bits"
    SHORTER = "shorter context"
    FEWER = "fewer parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescue:
    """A change to what was asked that was priced, and whether it is enough."""

    change: dict[str, str]
    """Option name without dashes in front to its new value, such as {"sharding": "zero3"}; options
    that are switches have ``yes`` or ``no``."""
    text: str
    plan: Plan
    saved_bytes: int
    """How much lower the peak is than that of the plan it changes; negative when higher."""
    time_ratio: float | None
    """Seconds per token over those of the plan it changes; None when rates are unknown."""
    semantics: tuple[Semantics, ...]
    """All that it does to the training; ``same`` only where that is all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All that ``recommend`` found."""

    plans: tuple[Plan, ...]
    """What fits, best first."""
    closest: Plan | None
    """When nothing fits: the priced candidate with the least excess."""
    ladder: tuple[Rescue, ...]
    """When nothing fits: changes in order, each on top of the one before, fitting or not."""
    rescues: tuple[Rescue, ...]
    """When nothing fits: the smallest changes that do, fewest changes first."""
    speedups: tuple[Rescue, ...] = ()
    """By request: single changes that make the best plan faster, fastest first."""
    savings: tuple[Rescue, ...] = ()
    """By request: single changes that make the best plan smaller, least change first."""
    pareto: tuple[Plan, ...] = ()
    """By request: what nothing else beats in time, memory and devices at once, fastest first."""
    searched: int
    """Candidates weighed: every (layout, micro-batch, K) that was priced, fitting or not.

    What ``ladder`` and ``rescues`` price on top is not a candidate."""
    caveats: tuple[Caveat, ...] = ()
