"""``probe``: the largest micro-batch that really fits, found by training with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Unpack

from batchplan import __version__
from batchplan.api.fields import SharedFields
from batchplan.api.probe_answer import ProbeAnswer
from batchplan.api.probe_inputs import AUTO, DEFAULT_TIMEOUT_SECONDS, Asked, ask
from batchplan.api.profiles import OnProgress, Profiles
from batchplan.prober.expectation import Expectation, Intent, intend
from batchplan.prober.measurement import measurement
from batchplan.prober.measurement import save as save_measurement
from batchplan.prober.runner import Trials
from batchplan.prober.search import Found, find_largest
from batchplan.prober.trial import Device, Job, Trial
from batchplan.spec import Caveat
from batchplan.units import format_bytes, format_seconds


def probe(
    model: str,
    *,
    device: str = AUTO,
    memory_limit: str | int | None = None,
    devices: int | str = 1,
    as_rank_of: int | str | None = None,
    accum_steps: int | str | None = None,
    max_micro_batch: int | str | None = None,
    weights: bool = False,
    timeout: float | str = DEFAULT_TIMEOUT_SECONDS,
    save: bool = False,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
    **fields: Unpack[SharedFields],
) -> ProbeAnswer:
    """Return the largest micro-batch with which this machine really trains, in few trials.

    Every trial trains for two optimizer steps in a process of its own, which ends with it.

    Args:
        model: Hub id, local folder or config.json, or a catalog name.
        device: ``cuda``, ``cpu``, ``mps``, or ``auto`` for the GPU there is.
        memory_limit: what a trial may take, such as ``24GiB``; None is what is free. A CPU and MPS
            need it.
        devices: ranks that train together, each on a device of this machine.
        as_rank_of: train one rank of so many, with its share of the states alone.
        accum_steps: micro-batches of an optimizer step, 2 or more; None is 2.
        max_micro_batch: where to stop; None is only what fits.
        weights: load the published weights in place of random ones.
        timeout: seconds that one trial may take, loading left out.
        save: keep the result, for later estimates on this device.
        dry_run: say what would be done, and do nothing on the device.
        on_progress: told in words what is being done, with the time that is left.
        **fields: the shared inputs, named as on the command line, but for ``gpu``.

    Raises:
        SpecError: when an input is wrong.
        SourceError: when the model's config cannot be had.
        TraceError: when the model's code cannot be traced.
        ProbeError: when there is no such device, or others use it.
    """
    asked = ask(
        model,
        fields,
        device=device,
        memory_limit=memory_limit,
        devices=devices,
        as_rank_of=as_rank_of,
        accum_steps=accum_steps,
        max_micro_batch=max_micro_batch,
        weights=weights,
        timeout=timeout,
    )
    request = asked.request
    profiles = Profiles(request, on_progress)
    expected = asked.expect(profiles)
    job = asked.job_beside(expected.left_out_bytes)
    usable_bytes = request.gpu.usable_bytes - expected.left_out_bytes
    intent = intend(expected, usable_bytes=usable_bytes, cap=asked.cap, num_steps=job.num_steps)
    found = None
    if not dry_run:
        found = _find(job, expected, intent, asked.cap, on_progress)
    micro_batch = (found.max_micro_batch if found else 0) or intent.start_micro_batch
    batch = asked.batch(micro_batch)
    answer = ProbeAnswer(
        inputs=asked.inputs,
        model=request.model,
        num_params=profiles.num_params,
        num_trainable_params=profiles.num_trainable_params,
        recipe=job.recipe,
        batch=batch,
        gpu=request.gpu,
        state=asked.state,
        intent=intent,
        found=found,
        predicted=expected.bill(micro_batch),
        left_out_bytes=expected.left_out_bytes,
        predicted_seconds=expected.step_seconds(micro_batch),
        versions=profiles.versions,
        saved_to=None,
        caveats=(
            *request.caveats,
            *asked.policy.caveats(job.recipe, batch),
            *_caveats(asked, expected.left_out_bytes),
            *(_told(found) if found else ()),
            *profiles.caveats,
        ),
    )
    if not save or found is None or found.best is None:
        return answer
    record = measurement(
        job=job,
        model_id=request.model.id,
        found=found,
        comparison=answer.comparison,
        version=__version__,
        driver=asked.state.driver,
    )
    return replace(answer, saved_to=save_measurement(record))


def _find(
    job: Job, expected: Expectation, intent: Intent, cap: int, on_progress: OnProgress | None
) -> Found:
    progress = _Progress(intent, on_progress)
    with Trials(job, on_progress=progress) as attempt:

        def tell_and_try(micro_batch: int) -> Trial:
            progress("starting")
            trial = attempt(micro_batch)
            progress.seconds.append(trial.seconds)
            return trial

        return find_largest(
            tell_and_try,
            predicted=expected.predicted,
            usable_bytes=intent.usable_bytes,
            cap=cap,
        )


class _Progress:
    """Which trial it is, and the time that is left."""

    def __init__(self, intent: Intent, on_progress: OnProgress | None) -> None:
        self.seconds: list[float] = []
        """Of the trials that are over."""
        self._intent, self._on_progress = intent, on_progress

    def __call__(self, text: str) -> None:
        if self._on_progress is None:
            return
        done, most = len(self.seconds), self._intent.most_trials
        each = sum(self.seconds) / done if done else self._intent.trial_seconds
        left = format_seconds(each * max(1, most - done))
        number = f"trial {done + 1} of about {max(done + 1, most)}"
        self._on_progress(f"{number}, about {left} left: {text}")


def _caveats(asked: Asked, left_out_bytes: int) -> Iterator[Caveat]:
    job, state = asked.job, asked.state
    yield Caveat(
        code="probe-left-out",
        text=f"Left out: evaluation, saving, and data with its loaders. K = {job.accum_steps} is "
        "run; from 2 on only the token ids of a step grow with it.",
    )
    if job.device is not Device.CUDA:
        yield Caveat(
            code="probe-not-cuda",
            text=f"On {state.gpu.name} memory means live tensors: there is no caching allocator, "
            "no context, and other kernels than on a GPU keep other activations.",
        )
    if state.reserve_bytes and job.device is Device.CUDA:
        why = "it drives a display" if state.drives_display else "others compute on it"
        text = f"{format_bytes(state.reserve_bytes)} of {state.gpu.name} stayed free, because {why}"
        yield Caveat(code="probe-reserve", text=f"{text}.")
    if left_out_bytes:
        yield Caveat(
            code="probe-as-rank",
            text=f"{format_bytes(left_out_bytes)} were kept free for the communicator, as the "
            "estimate has it: a rank that trains alone has none.",
        )


def _told(found: Found) -> Iterator[Caveat]:
    """Yield what the search and the largest run have to say."""
    yield from found.caveats
    if found.best is not None:
        for note in found.best.notes:
            yield Caveat(code="probe-note", text=f"In a trial: {note}.")
