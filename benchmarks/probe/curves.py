"""Simulated training runs: memory by micro-batch as allocators make it, and an estimate beside it.

Not straight lines: what is reserved runs above what is allocated and steps with the segments, a run
at the limit first gives cached memory back and then does so in every step, and the estimate is off
in its fixed part and in its slope. All is drawn from a seed, so that every finder gets the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from batchplan.prober.trial import Outcome, RankPeaks, Trial
from batchplan.units import GIB, MIB

SEED = 20261122
NUM_CURVES = 500
CAP = 8192
"""Lightning's own limit (``max_val``)."""
LARGEST = 512
"""The micro-batches that fit are drawn from 1 to this, every power of two alike."""
ESTIMATE_ERROR = 0.15
CONTEXT_BYTES = 500 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One recipe on one device: what a trial of a micro-batch would do."""

    usable_bytes: int
    fixed_bytes: float
    slope_bytes: float
    bend: float
    """Growth of the slope for each micro-batch, relative."""
    cached_share: float
    """Of allocated bytes: what the allocator caches beyond them where it may."""
    least_share: float
    """Of allocated bytes: what it must hold beyond them to run at all."""
    smooth_share: float
    """Of allocated bytes: what it needs to run without giving memory back in every step."""
    segment_bytes: int
    """What is reserved comes in multiples of this."""
    estimated_fixed: float
    estimated_slope: float
    """The estimate's parts over the true ones."""

    def allocated_bytes(self, micro_batch: int) -> int:
        """Return the peak of live tensors, rounded to 2 MiB."""
        growth = self.slope_bytes * micro_batch * (1 + self.bend * micro_batch)
        return _up(self.fixed_bytes + growth, 2 * MIB)

    def in_use_bytes(self, micro_batch: int, share: float) -> int:
        """Return what the driver shows with so much cached."""
        reserved = _up(self.allocated_bytes(micro_batch) * (1 + share), self.segment_bytes)
        return reserved + CONTEXT_BYTES

    def predicted_bytes(self, micro_batch: int) -> int:
        """Return what the estimate says is in use."""
        allocated = (
            self.fixed_bytes * self.estimated_fixed
            + self.slope_bytes * self.estimated_slope * micro_batch
        )
        return round(allocated * (1 + self.cached_share)) + CONTEXT_BYTES

    def attempt(self, micro_batch: int) -> Trial:
        """Return what training with this micro-batch gives."""
        free, least, smooth = (
            self.in_use_bytes(micro_batch, share)
            for share in (self.cached_share, self.least_share, self.smooth_share)
        )
        if least > self.usable_bytes:
            return Trial(micro_batch=micro_batch, outcome=Outcome.OUT_OF_MEMORY)
        is_pressed = free > self.usable_bytes
        thrashes = smooth > self.usable_bytes
        in_use = min(free, self.usable_bytes)
        peaks = RankPeaks(
            rank=0,
            allocated_peak_bytes=self.allocated_bytes(micro_batch),
            reserved_peak_bytes=in_use - CONTEXT_BYTES,
            in_use_peak_bytes=in_use,
            context_bytes=CONTEXT_BYTES,
            num_retries=8 * thrashes or int(is_pressed),
        )
        return Trial(
            micro_batch=micro_batch,
            outcome=Outcome.THRASHES if thrashes else Outcome.FITS,
            ranks=(peaks,),
        )

    def largest(self) -> int:
        """Return the micro-batch to be found, by trying one after the other."""
        micro_batch = 0
        while micro_batch < CAP and self.attempt(micro_batch + 1).outcome is Outcome.FITS:
            micro_batch += 1
        return micro_batch


def curves(count: int = NUM_CURVES, seed: int = SEED) -> Iterator[Curve]:
    """Yield the family, the same for the same seed."""
    draw = random.Random(seed)
    for _ in range(count):
        yield _curve(draw)


def _curve(draw: random.Random) -> Curve:
    usable = draw.choice((8, 16, 24, 40, 48, 80)) * GIB
    largest = LARGEST ** draw.random() + draw.random()
    cached = draw.uniform(0.005, 0.125)  # torch-preflight: 6-12.5 % on real models; replayed: less
    smooth = cached * draw.random()
    room = (usable - CONTEXT_BYTES) / (1 + smooth)
    fixed = draw.uniform(0.1, 0.9) * room
    errors = [draw.uniform(-ESTIMATE_ERROR, ESTIMATE_ERROR) for _ in range(2)]
    return Curve(
        usable_bytes=usable,
        fixed_bytes=fixed,
        slope_bytes=(room - fixed) / largest,
        bend=draw.uniform(-0.03, 0.03) / largest,
        cached_share=cached,
        least_share=smooth * draw.random(),
        smooth_share=smooth,
        segment_bytes=draw.choice((2, 20, 128)) * MIB,
        estimated_fixed=1 + errors[0],
        estimated_slope=1 + errors[1],
    )


def _up(num_bytes: float, step: int) -> int:
    return int(-(-num_bytes // step)) * step
