"""What is tried and what came of it: plain data between search, runner and page."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from batchplan.spec import Recipe


class Device(StrEnum):
    """Where a trial trains."""

    CUDA = "cuda"
    CPU = "cpu"
    MPS = "mps"


class Outcome(StrEnum):
    """How a trial ended."""

    FITS = "fits"
    THRASHES = "thrashes"
    """It ran, but the allocator gave memory back in consecutive steps: counts as not fitting."""
    OUT_OF_MEMORY = "out-of-memory"
    TIMED_OUT = "timed-out"
    CRASHED = "crashed"

    @property
    def is_about_memory(self) -> bool:
        """Whether it tells on which side of the boundary the micro-batch lies."""
        return self in (Outcome.FITS, Outcome.THRASHES, Outcome.OUT_OF_MEMORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything about a trial but its micro-batch."""

    config: dict[str, Any]
    """The model's ``config.json``."""
    model_ref: str
    recipe: Recipe
    seq_len: int
    accum_steps: int = 2
    num_steps: int = 2
    """Optimizer steps."""
    num_ranks: int = 1
    as_rank_of: int | None = None
    """Hold only one share in so many of what the strategy splits."""
    device: Device = Device.CUDA
    memory_limit_bytes: int | None = None
    """Emulates a smaller device; None takes all there is. On a CPU it is needed."""
    weights: bool = False
    """Load the published weights in place of random ones."""
    trust_remote_code: bool = False
    python: Path | None = None
    timeout_seconds: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPeaks:
    """What one rank reported."""

    rank: int
    allocated_peak_bytes: int | None
    reserved_peak_bytes: int | None
    in_use_peak_bytes: int | None
    """As the driver (on a CPU the kernel) shows the process."""
    context_bytes: int | None
    """In use before the first tensor: the bare context."""
    num_retries: int
    """Times the allocator gave cached memory back, all steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One micro-batch, tried."""

    micro_batch: int
    outcome: Outcome
    ranks: tuple[RankPeaks, ...] = ()
    step_seconds: tuple[float, ...] = ()
    """Of every optimizer step; the first one warms up."""
    seconds: float = 0.0
    """Of the whole trial, start-up included."""
    versions: tuple[tuple[str, str], ...] = ()
    device_name: str = ""
    total_bytes: int | None = None
    """What the device has, or the limit."""
    text: str = ""
    """What the child said when it did not fit, in one line."""
    notes: tuple[str, ...] = ()
    """Where the trial differs from the run that it stands for."""

    @property
    def allocated_peak_bytes(self) -> int | None:
        """Of the fullest rank."""
        return _fullest(rank.allocated_peak_bytes for rank in self.ranks)

    @property
    def reserved_peak_bytes(self) -> int | None:
        """Of the fullest rank."""
        return _fullest(rank.reserved_peak_bytes for rank in self.ranks)

    @property
    def in_use_peak_bytes(self) -> int | None:
        """Of the fullest rank."""
        return _fullest(rank.in_use_peak_bytes for rank in self.ranks)


def _fullest(values: Any) -> int | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None
