"""``recommend --probe``: whether the best plan really runs on this machine's GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

from batchplan.api.profiles import OnProgress
from batchplan.api.request import Request
from batchplan.errors import ProbeError, SpecError
from batchplan.planner.plan import Answer, Plan
from batchplan.prober.politeness import State, look, room
from batchplan.prober.runner import Trials
from batchplan.prober.trial import Device, Job, Outcome, Trial
from batchplan.spec import Caveat
from batchplan.units import format_bytes

LOCAL = "local"
MOST_ACCUM_STEPS = 2
"""Of a trial: with more, the peak is the same."""
_ENDED = {
    Outcome.OUT_OF_MEMORY: "runs out of memory",
    Outcome.THRASHES: "only runs by giving memory back in every step",
    Outcome.TIMED_OUT: "did not end in time",
    Outcome.CRASHED: "crashed",
}


def check_probe(request: Request) -> None:
    """Refuse ``--probe`` where there is nothing here to probe.

    Raises:
        SpecError: when the plans are for another device, or there is no model.
    """
    if request.gpu_text != LOCAL:
        raise SpecError(
            f"--probe trains on this machine's GPU, and the plans are for {request.gpu_text}. Use "
            f"--gpu {LOCAL}."
        )
    if request.resolved is None:
        raise SpecError("--probe trains a MODEL; --params has none.")


def confirm_by_probe(found: Answer, request: Request, on_progress: OnProgress | None) -> Answer:
    """Return the answer in the order that trials leave it in.

    Plans are tried best first until one holds, and that one with a sequence more as well. Those
    that do not hold go; where none is left, the first is the closest. What cannot be tried (a
    strategy that needs more devices than are here) ends the trials, and a caveat says so.

    Raises:
        ProbeError: when there is no GPU, or others use it.
    """
    trials = _PlanTrials(request, on_progress)
    failed: list[Plan] = []
    try:
        for rank, plan in enumerate(found.plans, start=1):
            if trials.holds(rank, plan):
                break
            failed.append(plan)
    except SpecError as error:
        trials.say(f"Not probed further: {error}")
    left = tuple(plan for plan in found.plans if plan not in failed)
    closest = found.closest if left or not failed else failed[0]
    caveats = (*found.caveats, *trials.caveats)
    return replace(found, plans=left, closest=closest, caveats=caveats)


@dataclass(slots=True)
class _PlanTrials:
    """Trials of plans, and what they told."""

    request: Request
    on_progress: OnProgress | None
    caveats: list[Caveat] = field(default_factory=list)

    def holds(self, rank: int, plan: Plan) -> bool:
        """Return whether a plan runs; False only where memory was the reason that it does not."""
        job = self._job(plan)
        size = plan.batch.micro_batch
        with Trials(job, on_progress=self._tell(rank)) as attempt:
            trial = attempt(size)
            above = attempt(size + 1) if trial.outcome is Outcome.FITS else None
        self.say(" ".join(_words(rank, plan, job, trial, above)))
        return trial.outcome is Outcome.FITS or not trial.outcome.is_about_memory

    def say(self, text: str) -> None:
        """Keep what the user should know."""
        self.caveats.append(Caveat(code="probed", text=text))

    def _tell(self, rank: int) -> OnProgress | None:
        tell = self.on_progress
        return None if tell is None else lambda text: tell(f"probing plan {rank}: {text}")

    def _job(self, plan: Plan) -> Job:
        request, wanted = self.request, plan.batch.num_ranks
        state, num_ranks = _devices(wanted)
        usable_bytes = room(state, None)
        return Job(
            config=request.traced_config,
            model_ref=request.model_text or "",
            recipe=plan.recipe,
            seq_len=plan.batch.seq_len,
            accum_steps=min(plan.batch.accum_steps, MOST_ACCUM_STEPS),
            num_ranks=num_ranks,
            as_rank_of=wanted if num_ranks < wanted else None,
            device=Device.CUDA,
            memory_limit_bytes=None if state.is_ours else usable_bytes,
            trust_remote_code=request.trust_remote_code,
            python=request.python,
        )


def _devices(num_ranks: int) -> tuple[State, int]:
    """Return the devices of a plan where this machine has so many, otherwise one."""
    if num_ranks > 1:
        with suppress(ProbeError):
            return look(Device.CUDA, num_devices=num_ranks), num_ranks
    return look(Device.CUDA), 1


def _words(rank: int, plan: Plan, job: Job, trial: Trial, above: Trial | None) -> Iterator[str]:
    size = plan.batch.micro_batch
    alone = "" if job.as_rank_of is None else f", as one rank of {job.as_rank_of}"
    start = f"Probed plan {rank} ({plan.recipe.sharding}, micro-batch {size:,}{alone}):"
    if trial.outcome is Outcome.FITS:
        used = trial.in_use_peak_bytes or trial.reserved_peak_bytes
        took = "" if used is None else f" with {format_bytes(used)} in use"
        yield f"{start} it runs{took}, {format_bytes(plan.memory.peak_bytes)} were predicted."
        if above is not None:
            yield f"Micro-batch {size + 1:,} {_ENDED.get(above.outcome, 'runs as well')}."
    elif trial.outcome.is_about_memory:
        yield f"{start} it {_ENDED[trial.outcome]} here, so it was left out."
    else:
        yield f"{start} it {_ENDED[trial.outcome]}, which tells nothing of memory: {trial.text}."
