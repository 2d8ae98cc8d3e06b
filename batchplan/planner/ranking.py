"""Which candidate is best: what the user optimises, as a table of criteria, and how ties break."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from batchplan.errors import SpecError
from batchplan.planner.candidates import Layout
from batchplan.planner.plan import Plan
from batchplan.spec import Cluster, Objective

TIE = 0.005
"""Predictions within half a percent are equal: the models are not better than that."""


def _whole(_: int) -> float:
    return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What is optimised, and what training is to be done by when."""

    objective: Objective = Objective.THROUGHPUT
    train_tokens: int | None = None
    """Tokens of the whole run."""
    deadline_seconds: float | None = None
    time_share: Callable[[int], float] = _whole
    """How long an average step takes against one of the longest sequences, by micro-batch."""
    price: float = 1.0
    """Of one device for a while; matters between devices only."""

    def check(self, *, knows_rates: bool) -> None:
        """Refuse what cannot be ranked.

        Raises:
            SpecError: when time is needed and the device's rates or the work are unknown.
        """
        if self.objective is Objective.TIME and not (self.train_tokens and self.deadline_seconds):
            raise SpecError(
                "--optimize time needs the work and the time for it: add --dataset-tokens and "
                "--deadline HOURS."
            )
        if self.objective in (Objective.COST, Objective.TIME) and not knows_rates:
            raise SpecError(
                f"--optimize {self.objective} needs a step time, and the rates of this device are "
                "unknown. Name a catalog GPU and a MODEL."
            )

    def seconds_late(self, seconds_per_token: float | None, micro_batch: int) -> float:
        """Return how much later than the deadline the run ends; 0 without a deadline."""
        if not (seconds_per_token and self.train_tokens and self.deadline_seconds):
            return 0.0
        seconds = seconds_per_token * self.train_tokens * self.time_share(micro_batch)
        return max(0.0, seconds - self.deadline_seconds)


class Candidate(NamedTuple):
    """One (layout, micro-batch, K) believed to fit; a tuple, because there are many."""

    layout: Layout
    micro_batch: int
    accum_steps: int
    deviation: float
    """(reached tokens - target) / target."""
    seconds_per_token: float | None
    peak_bytes: int
    """The quick price's."""

    @classmethod
    def of(cls, plan: Plan) -> Candidate:
        """Return a plan as the candidate that it was, with its confirmed peak."""
        rate = plan.tokens_per_second
        cluster = Cluster(num_ranks=plan.batch.num_ranks, num_nodes=plan.num_nodes)
        return cls(
            layout=Layout(recipe=plan.recipe, cluster=cluster),
            micro_batch=plan.batch.micro_batch,
            accum_steps=plan.batch.accum_steps,
            deviation=plan.target_deviation,
            seconds_per_token=None if rate is None else 1 / rate,
            peak_bytes=plan.memory.peak_bytes,
        )

    @property
    def num_ranks(self) -> int:
        """Devices over all nodes."""
        return self.layout.cluster.num_ranks

    @property
    def preference(self) -> tuple[object, ...]:
        """Among equals: nearer the target, simpler, fewer K, smaller batch."""
        return (
            abs(self.deviation),
            self.layout.complexity,
            self.accum_steps,
            self.micro_batch * self.accum_steps * self.num_ranks,
        )

    @property
    def proxy(self) -> tuple[object, ...]:
        """Order when rates are unknown: more devices, less recomputation, larger micro-batch."""
        sharding, offload, checkpointing, *others = self.layout.complexity
        return (
            -self.num_ranks,
            checkpointing,
            offload,
            -self.micro_batch,
            self.accum_steps,
            abs(self.deviation),
            sharding,
            *others,
        )


@dataclass(frozen=True, slots=True)
class Criterion:
    """What is made small, and within what share of the least it counts as equal."""

    measure: Callable[[Candidate, Aim], float]
    tie: float = TIE
    needs_time: bool = False


def _seconds(candidate: Candidate, _: Aim) -> float:
    return candidate.seconds_per_token or 0.0


_FAST = Criterion(_seconds, needs_time=True)
_FEW = Criterion(lambda candidate, _: candidate.num_ranks, tie=0.0)
CRITERIA: dict[Objective, tuple[Criterion, ...]] = {
    Objective.THROUGHPUT: (_FAST,),
    Objective.MEMORY: (Criterion(lambda candidate, _: candidate.peak_bytes), _FAST),
    Objective.DEVICES: (_FEW, _FAST),
    Objective.COST: (
        Criterion(lambda each, aim: _seconds(each, aim) * each.num_ranks * aim.price),
        _FAST,
    ),
    Objective.TIME: (
        Criterion(lambda each, aim: aim.seconds_late(each.seconds_per_token, each.micro_batch)),
        _FEW,
        _FAST,
    ),
}
"""Each narrows what the one before left."""


def scores(candidate: Candidate, aim: Aim) -> tuple[float, ...]:
    """Return what a candidate is ranked by, across devices too: the smaller, the better."""
    return tuple(criterion.measure(candidate, aim) for criterion in CRITERIA[aim.objective])


def best(candidates: Sequence[Candidate], aim: Aim) -> Candidate:
    """Return the preferred one among those that are as good as any by every criterion in turn."""
    knows_time = candidates[0].seconds_per_token is not None
    for criterion in CRITERIA[aim.objective]:
        if criterion.needs_time and not knows_time:
            continue
        values = [criterion.measure(each, aim) for each in candidates]
        enough = min(values) * (1 + criterion.tie)
        candidates = [
            each for each, value in zip(candidates, values, strict=True) if value <= enough
        ]
    if not knows_time:
        return min(candidates, key=lambda each: each.proxy)
    return min(candidates, key=lambda each: each.preference)


def pareto_front(candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    """Yield, fastest first, what nothing else beats in time, memory and devices at once.

    What is worse in two of the three and within ``TIE`` in the other is beaten.
    """
    kept: list[Candidate] = []

    def values(each: Candidate) -> tuple[float, int, int]:
        return each.seconds_per_token or 0.0, each.peak_bytes, each.num_ranks

    for each in sorted(candidates, key=lambda each: (*values(each), each.preference)):
        _, peak, ranks = values(each)
        if all(peak < (1 - TIE) * other.peak_bytes or ranks < other.num_ranks for other in kept):
            kept.append(each)
            yield each
