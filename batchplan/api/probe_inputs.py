"""The inputs of ``probe``, checked, on the device as it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from batchplan.api.checks import checked, num_bytes, option, shown, whole
from batchplan.api.documents import recipe_document
from batchplan.api.fields import NOT_HERE, SharedFields
from batchplan.api.policies import Policy
from batchplan.api.profiles import Profiles
from batchplan.api.request import Request, resolve
from batchplan.errors import SpecError
from batchplan.planner import ProfilePricer
from batchplan.planner.hardware import check_attention
from batchplan.prober.expectation import Expectation
from batchplan.prober.politeness import State, look, room
from batchplan.prober.request import probe_request
from batchplan.prober.trial import Device, Job
from batchplan.spec import MAX_MICRO_BATCH, Batch, Cluster

AUTO = "auto"
ACCUM_STEPS = 2
"""Of a trial. With fewer, no micro-batch meets the gradients of an earlier one; with more, the peak
is the same."""
DEFAULT_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The inputs, checked, on the device as it is."""

    request: Request
    policy: Policy
    job: Job
    state: State
    cluster: Cluster
    cap: int
    inputs: dict[str, Any]

    def expect(self, profiles: Profiles) -> Expectation:
        """Return the estimate of the job, as a function of the micro-batch."""
        return Expectation(
            pricer=ProfilePricer(profiles=profiles, gpu=self.request.gpu),
            recipe=self.job.recipe,
            gpu=self.request.gpu,
            cluster=self.cluster,
            seq_len=self.job.seq_len,
            accum_steps=self.job.accum_steps,
            device=self.job.device,
            is_alone=self.job.as_rank_of is not None,
            cap=self.cap,
        )

    def job_beside(self, left_out_bytes: int) -> Job:
        """Return the job with so much of what it may take kept free for what it leaves out."""
        if not left_out_bytes and self.job.memory_limit_bytes is None:
            return self.job
        left = self.request.gpu.usable_bytes - left_out_bytes
        return replace(self.job, memory_limit_bytes=left)

    def batch(self, micro_batch: int) -> Batch:
        """Return the batch of an optimizer step, over all ranks."""
        return Batch(
            micro_batch=micro_batch,
            accum_steps=self.job.accum_steps,
            num_ranks=self.cluster.num_ranks,
            seq_len=self.job.seq_len,
        )


def ask(
    model: str,
    fields: SharedFields,
    *,
    device: str = AUTO,
    memory_limit: str | int | None = None,
    devices: int | str = 1,
    as_rank_of: int | str | None = None,
    accum_steps: int | str | None = None,
    max_micro_batch: int | str | None = None,
    weights: bool = False,
    timeout: float | str = DEFAULT_TIMEOUT_SECONDS,
) -> Asked:
    """Check the inputs, look at the device, and resolve the model; arguments as ``probe``.

    Raises:
        SpecError: when an input is wrong or cannot be tried.
        SourceError: when the model's config cannot be had.
        ProbeError: when there is no such device, or others use it.
    """
    _refuse(fields)
    num_devices = whole("devices", devices)
    alone = None if as_rank_of is None else whole("as_rank_of", as_rank_of, least=2)
    if alone is not None and num_devices > 1:
        raise SpecError("--as-rank-of trains one rank of many on one device: no --devices.")
    cap = None if max_micro_batch is None else whole("max_micro_batch", max_micro_batch)
    limit = None if memory_limit is None else num_bytes("memory_limit", memory_limit)
    steps = whole("accum_steps", accum_steps or ACCUM_STEPS, least=ACCUM_STEPS)
    cluster = checked(Cluster, {"num_ranks": alone or num_devices})
    kind, seconds = _device(device), _seconds(timeout)
    # The device is asked before the model: without one nothing else is worth the wait.
    state = look(kind, num_devices=num_devices)
    usable_bytes = room(state, limit)
    gpu = state.gpu.model_copy(update={"usable_bytes": usable_bytes})
    request = replace(resolve(model, {**fields, "gpu": f"{usable_bytes}B"}), gpu=gpu)
    policy = Policy(request, {"micro_batch": 1, "accum_steps": steps}, cluster.num_ranks)
    recipe = policy.recipe()
    check_attention(recipe, gpu)
    given = {
        "device": kind.value,
        "memory_limit": limit,
        "devices": num_devices,
        "as_rank_of": alone,
        "accum_steps": steps,
        "max_micro_batch": cap,
        "weights": weights,
        "timeout": seconds,
    }
    shared = request.inputs() | recipe_document(recipe)
    inputs = {name: value for name, value in shared.items() if name not in ("gpu", *NOT_HERE)}
    job = Job(
        config=request.traced_config,
        model_ref=request.model_text or "",
        recipe=recipe,
        seq_len=request.seq_len,
        accum_steps=steps,
        num_ranks=num_devices,
        as_rank_of=alone,
        device=kind,
        # A device that is ours alone ends where its memory does.
        memory_limit_bytes=None if limit is None and state.is_ours else usable_bytes,
        weights=weights,
        trust_remote_code=request.trust_remote_code,
        python=request.python,
        timeout_seconds=seconds,
    )
    probe_request(job)  # refuses what cannot be tried, before anything is traced
    return Asked(
        request=request,
        policy=policy,
        job=job,
        state=state,
        cluster=cluster,
        cap=min(cap or MAX_MICRO_BATCH, MAX_MICRO_BATCH),
        inputs=inputs | given,
    )


def _refuse(fields: Mapping[str, Any]) -> None:
    if fields.get("gpu") is not None:
        raise SpecError("probe trains on this machine's own device: --device, not --gpu.")
    for name in NOT_HERE:
        if fields.get(name) is not None:
            raise SpecError(f"{option(name)}: probe trains a model on one machine.")


def _device(text: str) -> Device:
    if text == AUTO:
        return Device.MPS if sys.platform == "darwin" else Device.CUDA
    try:
        return Device(text)
    except ValueError:
        raise SpecError(
            f"--device {shown(text)} is none of {', '.join((*Device, AUTO))}."
        ) from None


def _seconds(value: float | str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < 1e6:
        raise SpecError(f"--timeout {shown(value)} must be seconds, 1 or more.")
    return seconds
