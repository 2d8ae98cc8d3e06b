"""The measured peaks beside the estimate of the same micro-batch, term by term."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from batchplan.memory import Estimate
from batchplan.prober.trial import RankPeaks, Trial

_OVERHEADS = ("CUDA context", "libraries", "communicator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One figure, predicted and measured."""

    name: str
    predicted_bytes: int
    measured_bytes: int

    @property
    def deviation(self) -> float | None:
        """Measured less predicted, over predicted; None when nothing was predicted."""
        if not self.predicted_bytes:
            return None
        return self.measured_bytes / self.predicted_bytes - 1


def compare(bill: Estimate, trial: Trial, *, left_out_bytes: int = 0) -> tuple[Compared, ...]:
    """Return every figure that both the bill and the fullest rank of a trial have.

    ``overheads`` is what the process holds beside the allocator's segments; ``context`` is the part
    of it that was there before the first tensor.

    Args:
        bill: of the trial's micro-batch.
        trial: one that fits.
        left_out_bytes: overheads of the bill that the trial does not have.
    """
    if not trial.ranks:
        return ()
    rank = max(trial.ranks, key=lambda each: each.in_use_peak_bytes or 0)
    return tuple(
        Compared(name=name, predicted_bytes=predicted, measured_bytes=measured)
        for name, predicted, measured in _figures(bill, rank, left_out_bytes)
        if measured is not None
    )


def _figures(
    bill: Estimate, rank: RankPeaks, left_out_bytes: int
) -> Iterator[tuple[str, int, int | None]]:
    yield "allocated", bill.allocated_peak_bytes, rank.allocated_peak_bytes
    # Without a caching allocator and a context (on a CPU) the rest has nothing to stand beside.
    if rank.reserved_peak_bytes is None:
        return
    yield "reserved", bill.reserved_peak_bytes, rank.reserved_peak_bytes
    yield "in use", bill.in_use_peak_bytes - left_out_bytes, rank.in_use_peak_bytes
    yield "context", bill.term("CUDA context"), rank.context_bytes
    if rank.in_use_peak_bytes is not None:
        beside = rank.in_use_peak_bytes - rank.reserved_peak_bytes
        overheads = sum(bill.term(name) for name in _OVERHEADS)
        yield "overheads", overheads - left_out_bytes, beside


def steady_seconds(trial: Trial) -> float | None:
    """Return the time of an optimizer step, the first left out: it loads kernels and warms up."""
    later = trial.step_seconds[1:]
    return median(later) if later else None
