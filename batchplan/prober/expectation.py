"""What the estimate says a probe will find: where it starts, how many trials, how long."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.memory import Estimate
from batchplan.memory.device import communicator_bytes, overhead_bytes
from batchplan.planner import ProfilePricer
from batchplan.planner.confirmed import largest_that
from batchplan.prober.search import find_largest
from batchplan.prober.trial import Device, Outcome, RankPeaks, Trial
from batchplan.spec import Batch, Cluster, Gpu, Recipe

STARTUP_SECONDS = 15.0
"""Until the first micro-batch runs: torch and transformers load (4 s on a laptop's disk), the
context is made, weights are drawn. A guess that the first trial replaces."""


class Expectation:
    """The estimate of one recipe as a function of the micro-batch, in the bytes a probe meets.

    On CUDA these are what the driver shows; elsewhere live tensors, because neither the caching
    allocator nor a context is there. Between two whole bills the quick price is scaled.
    """

    def __init__(
        self,
        *,
        pricer: ProfilePricer,
        recipe: Recipe,
        gpu: Gpu,
        cluster: Cluster,
        seq_len: int,
        accum_steps: int,
        device: Device,
        is_alone: bool,
        cap: int,
    ) -> None:
        """Price it.

        Args:
            pricer: of the model on ``gpu``.
            recipe: what is trained and how.
            gpu: what there is to use.
            cluster: ranks over which states are split.
            seq_len: tokens of every sequence.
            accum_steps: micro-batches of a step.
            device: where it trains.
            is_alone: one rank of ``cluster`` trains without the others.
            cap: the largest micro-batch asked for.
        """
        self._pricer, self._recipe, self._cluster = pricer, recipe, cluster
        self._seq_len, self._accum_steps = seq_len, accum_steps
        self._quick = pricer.quick(recipe=recipe, cluster=cluster, seq_len=seq_len)
        self._is_cuda = device is Device.CUDA
        self._scale = 1.0
        # Gathers and reductions have their buffers without other ranks; the communicator does not.
        self.left_out_bytes = communicator_bytes(cluster) if is_alone and self._is_cuda else 0
        overheads = overhead_bytes(gpu, cluster)
        self._beside_bytes = self.left_out_bytes if self._is_cuda else overheads
        near = max(1, self.largest(gpu.usable_bytes, cap))
        self._scale = self.peak_bytes(self.bill(near)) / self.predicted(near)

    def bill(self, micro_batch: int) -> Estimate:
        """Return the whole bill, the allocator played."""
        batch = Batch(
            micro_batch=micro_batch,
            accum_steps=self._accum_steps,
            num_ranks=self._cluster.num_ranks,
            seq_len=self._seq_len,
        )
        return self._pricer.confirm(recipe=self._recipe, batch=batch, cluster=self._cluster)

    def peak_bytes(self, bill: Estimate) -> int:
        """Return what of a bill a probe meets."""
        if not self._is_cuda:
            return bill.allocated_peak_bytes
        return bill.in_use_peak_bytes - self.left_out_bytes

    def predicted(self, micro_batch: int) -> int:
        """Return the peak of a micro-batch as a probe meets it."""
        quick = self._quick.peak_bytes(micro_batch, self._accum_steps) - self._beside_bytes
        return round(self._scale * quick)

    def largest(self, usable_bytes: int, cap: int) -> int:
        """Return the largest micro-batch predicted to fit, up to ``cap``; 0 if none."""
        return largest_that(lambda size: self.predicted(size) <= usable_bytes, 1, cap)

    def step_seconds(self, micro_batch: int) -> float | None:
        """Return the predicted time of an optimizer step; None where the rates are not known."""
        timer = self._pricer.timer(
            recipe=self._recipe, cluster=self._cluster, seq_len=self._seq_len
        )
        return None if timer is None else timer.seconds(micro_batch, self._accum_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What a probe will do, known before it touches the device."""

    predicted_micro_batch: int
    """The largest that the estimate lets fit; 0 if none."""
    start_micro_batch: int
    """The first to be tried."""
    start_bytes: int
    """What it is predicted to take."""
    usable_bytes: int
    """What the probe may take; no trial gets more."""
    fewest_trials: int
    """When the estimate is right."""
    most_trials: int
    """When it is off by its error either way."""
    trial_seconds: float
    """Of one, start-up included."""

    @property
    def seconds(self) -> float:
        """Of the whole probe, as far as one can tell."""
        return self.most_trials * self.trial_seconds


def intend(expected: Expectation, *, usable_bytes: int, cap: int, num_steps: int) -> Intent:
    """Return what the search would do, by running it on the predicted curve.

    Args:
        expected: the curve.
        usable_bytes: what the probe may take.
        cap: the largest micro-batch asked for.
        num_steps: optimizer steps of a trial.
    """

    def rehearse(factor: float) -> tuple[Trial, ...]:
        def attempt(micro_batch: int) -> Trial:
            return _pretend(micro_batch, factor * expected.predicted(micro_batch), usable_bytes)

        predicted = expected.predicted
        return find_largest(attempt, predicted=predicted, usable_bytes=usable_bytes, cap=cap).trials

    as_predicted = rehearse(1.0)
    error = expected.bill(as_predicted[0].micro_batch).in_use_error.percent / 100
    counts = [len(as_predicted), len(rehearse(1 - error)), len(rehearse(1 + error))]
    start = as_predicted[0].micro_batch
    return Intent(
        predicted_micro_batch=expected.largest(usable_bytes, cap),
        start_micro_batch=start,
        start_bytes=expected.predicted(start),
        usable_bytes=usable_bytes,
        fewest_trials=counts[0],
        most_trials=max(counts),
        trial_seconds=STARTUP_SECONDS + num_steps * (expected.step_seconds(start) or 0.0),
    )


def _pretend(micro_batch: int, peak: float, usable_bytes: int) -> Trial:
    if peak > usable_bytes:
        return Trial(micro_batch=micro_batch, outcome=Outcome.OUT_OF_MEMORY)
    rank = _rank_with(round(peak))
    return Trial(micro_batch=micro_batch, outcome=Outcome.FITS, ranks=(rank,))


def _rank_with(peak: int) -> RankPeaks:
    return RankPeaks(
        rank=0,
        allocated_peak_bytes=peak,
        reserved_peak_bytes=peak,
        in_use_peak_bytes=peak,
        context_bytes=0,
        num_retries=0,
    )
