"""``trace``: whole steps of the model's own code, replayed through torch's allocator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from batchplan.allocator import (
    Recording,
    Replay,
    replay,
    smallest_card_bytes,
    write_snapshot,
)
from batchplan.api.checks import checked, whole
from batchplan.api.documents import (
    SCHEMA_VERSION,
    batch_document,
    caveats_document,
    device_document,
    model_document,
    plain,
    recipe_document,
)
from batchplan.api.fields import SharedFields
from batchplan.api.peaks import (
    ModuleBytes,
    Peak,
    Phase,
    PhaseHeight,
    TopAllocation,
    peak_of,
    phase_at,
    phases_of,
    timeline,
)
from batchplan.api.policies import Policy
from batchplan.api.profiles import OnProgress
from batchplan.api.recipes import numerics_words
from batchplan.api.request import Request, resolve
from batchplan.errors import SpecError
from batchplan.memory.device import (
    CUBLAS_HANDLES,
    cublas_workspace_bytes,
    in_use_error,
    libraries_bytes,
)
from batchplan.spec import Batch, Caveat, Gpu, ModelInfo, Recipe
from batchplan.tracer.recording import RecordedRun, record_step
from batchplan.units import format_bytes

DEFAULT_TOP = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often the allocator gave all that was free back to the driver, on this device."""

    total: int
    last_step: int
    """In the last step, and so in every later one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedMemory:
    """The peaks of the replay. All are bytes."""

    allocated_peak_bytes: int
    """As ``torch.cuda.max_memory_allocated`` counts."""
    reserved_peak_bytes: int
    """As ``torch.cuda.max_memory_reserved`` counts, where the device sets no limit."""
    in_use_peak_bytes: int
    """What the driver reports on this device: reserved there, CUDA context and libraries."""
    smallest_card_bytes: int
    """A card that still runs it, overheads included; it may have to give memory back to do so."""
    libraries_bytes: int
    """What loaded kernels take beside the CUDA context, as ``estimate`` counts them."""
    peak_phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceAnswer:
    """The story of one configuration's optimizer step on one device."""

    inputs: dict[str, Any]
    """Keyword arguments of ``trace`` that give this answer again."""
    model: ModelInfo
    num_params: int
    num_trainable_params: int
    batch: Batch
    recipe: Recipe
    gpu: Gpu
    versions: dict[str, str]
    """Packages that ran the model's code."""
    recording: Recording
    memory: TracedMemory
    timeline: tuple[PhaseHeight, ...]
    peak: Peak
    retries: Retries
    runs_out_in: str | None
    """The phase in which this device has no more room; None when all steps run."""
    has_margin: bool
    """Whether it also runs with the error of what is in use left free."""
    caveats: tuple[Caveat, ...]

    @property
    def fits(self) -> bool:
        """Whether every step runs, with the error as a margin and no retries once steady."""
        return self.has_margin and self.runs_out_in is None and not self.retries.last_step

    @property
    def headroom_bytes(self) -> int:
        """Usable bytes less those in use; what is missing, below zero, when it does not fit."""
        usable, memory = self.gpu.usable_bytes, self.memory
        if self.runs_out_in is None and not self.retries.last_step:
            return usable - memory.in_use_peak_bytes
        if self.runs_out_in is not None and memory.smallest_card_bytes > usable:
            return usable - memory.smallest_card_bytes
        # It runs somehow; with all that it reserves it would run without giving memory back.
        return usable - memory.reserved_peak_bytes - _beside(self.gpu)

    def write_snapshot(self, path: str | PathLike[str]) -> None:
        """Write what https://pytorch.org/memory_viz opens: the steps as this device runs them.

        Raises:
            SpecError: when the file cannot be written; an earlier one is left as it is.
        """
        try:
            # A link is kept: what it leads to is written.
            write_snapshot(
                Path(path).resolve(),
                self.recording,
                capacity_bytes=_capacity(self.gpu),
                expandable_segments=self.recipe.expandable_segments,
            )
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SpecError(f"Cannot write {path}: {reason}.") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``batchplan trace --json``."""
        peak = self.peak
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "trace",
            "inputs": self.inputs,
            "versions": self.versions,
            "model": model_document(self.model, self.num_params, self.num_trainable_params),
            "batch": batch_document(self.batch),
            "memory": plain(self.memory),
            "device": device_document(self.gpu),
            "numerics": numerics_words(self.recipe),
            "fits": self.fits,
            "headroom_bytes": self.headroom_bytes,
            "runs_out_in": self.runs_out_in,
            "retries": plain(self.retries),
            "timeline": plain(self.timeline),
            "peak": {
                "step": peak.step,
                "phase": peak.phase,
                "module": peak.module,
                "op": peak.op,
                "binds": peak.binds,
                "text": peak.text,
                "by_kind": peak.by_kind,
                "by_module": [_in_bytes(one) for one in peak.by_module],
                "top_allocations": [_in_bytes(one) for one in peak.top_allocations],
            },
            "caveats": caveats_document(self.caveats),
        }


def trace(
    model: str,
    *,
    micro_batch: int | str | None = None,
    accum_steps: int | str | None = None,
    top: int = DEFAULT_TOP,
    on_progress: OnProgress | None = None,
    **fields: Unpack[SharedFields],
) -> TraceAnswer:
    """Run whole optimizer steps on fake tensors and replay them through torch's allocator.

    Args:
        model: Hub id, local folder or config.json, or a catalog name.
        micro_batch: sequences in one forward; None is the trainer's default.
        accum_steps: passes per optimizer step; None is the trainer's default.
        top: how many of the largest modules and allocations at the peak to name.
        on_progress: told in words what the trace is doing.
        **fields: the shared inputs, named as on the command line; ``gpu`` is needed.

    Raises:
        SpecError: when an input is wrong, or the recipe cannot be recorded.
        SourceError: when the model's config cannot be had.
        TraceError: when the model's code cannot be traced.
    """
    top = whole("top", top)
    request = resolve(model, fields)
    if request.nodes not in (None, 1):
        raise SpecError(f"--nodes {request.nodes}: trace records one device; estimate prices more.")
    sizes = {"micro_batch": micro_batch, "accum_steps": accum_steps}
    given = {name: whole(name, size) for name, size in sizes.items() if size is not None}
    policy = Policy(request, given, 1)
    recipe = policy.recipe()
    batch = checked(Batch, {**policy.sizes(), "seq_len": request.seq_len})
    run = _record(request, recipe, batch, on_progress)
    if on_progress is not None:
        on_progress("replaying the allocator")
    inputs = request.inputs() | recipe_document(recipe)
    inputs |= {"micro_batch": batch.micro_batch, "accum_steps": batch.accum_steps, "top": top}
    notes = tuple(Caveat(code="trace-note", text=note) for note in run.notes)
    return _answer(
        run.recording,
        inputs=inputs,
        model=request.model.model_copy(update={"architecture": run.architecture}),
        num_params=run.num_params,
        num_trainable_params=run.num_trainable_params,
        batch=batch,
        recipe=recipe,
        gpu=request.gpu,
        versions=run.versions,
        top=top,
        caveats=(*request.caveats, *policy.caveats(recipe, batch), *notes),
    )


def _record(
    request: Request, recipe: Recipe, batch: Batch, on_progress: OnProgress | None
) -> RecordedRun:
    return record_step(
        config=request.traced_config,
        recipe=recipe,
        batch=batch,
        workspace_bytes=cublas_workspace_bytes(request.gpu) // CUBLAS_HANDLES,
        model_ref=request.model_text or "",
        python=request.python,
        trust_remote_code=request.trust_remote_code,
        library=request.library,
        on_progress=on_progress,
    )


def _answer(
    recording: Recording,
    *,
    batch: Batch,
    recipe: Recipe,
    gpu: Gpu,
    top: int,
    caveats: tuple[Caveat, ...],
    **known: Any,
) -> TraceAnswer:
    """Return what the replays of a recording tell."""
    expandable, capacity = recipe.expandable_segments, _capacity(gpu)
    phases = phases_of(recording, batch.accum_steps)
    free = replay(recording, expandable_segments=expandable)
    here = replay(recording, capacity_bytes=capacity, expandable_segments=expandable)
    retries = _retries(recording, here, capacity, phases, expandable=expandable)
    runs_out_in = None if here.ran_out_at is None else phase_at(phases, here.ran_out_at).words
    reserved = free.reserved_peak_bytes if here.ran_out_at is not None else here.reserved_peak_bytes
    with_margin = max(0, in_use_error(gpu).within(gpu.usable_bytes) - _beside(gpu))
    has_margin = _runs_smoothly(recording, with_margin, phases, expandable=expandable)
    smallest = smallest_card_bytes(recording, expandable_segments=expandable)
    peak = peak_of(recording, free, phases, top)
    in_use = min(reserved, capacity) + _beside(gpu)
    if runs_out_in is None:
        caveats = (*caveats, *_fit_caveats(gpu, in_use, retries, has_margin=has_margin))
    return TraceAnswer(
        **known,
        batch=batch,
        recipe=recipe,
        gpu=gpu,
        recording=recording,
        memory=TracedMemory(
            allocated_peak_bytes=free.allocated_peak_bytes,
            reserved_peak_bytes=free.reserved_peak_bytes,
            in_use_peak_bytes=in_use,
            smallest_card_bytes=smallest + _beside(gpu),
            libraries_bytes=libraries_bytes(gpu),
            peak_phase=peak.phase,
        ),
        timeline=tuple(timeline(recording, phases, expandable=expandable)),
        peak=peak,
        retries=retries,
        runs_out_in=runs_out_in,
        has_margin=has_margin,
        caveats=caveats,
    )


def _fit_caveats(
    gpu: Gpu, in_use_bytes: int, retries: Retries, *, has_margin: bool
) -> Iterator[Caveat]:
    """Yield what to know of a configuration that runs on the device."""
    if retries.last_step:
        text = (
            f"It runs on {gpu.name} only by giving cached memory back to the driver in every step, "
            "and each time stalls the device: that does not count as fitting."
        )
        yield Caveat(code="allocator-retries", text=text)
    elif not has_margin:
        text = (
            f"It runs with {format_bytes(gpu.usable_bytes - in_use_bytes)} left, but not with the "
            f"{in_use_error(gpu).percent:g} % to spare by which context and libraries make the sum "
            "uncertain, so it does not count as fitting: probe before relying on it."
        )
        yield Caveat(code="tight-fit", text=text)


def _runs_smoothly(
    recording: Recording, capacity: int, phases: Sequence[Phase], *, expandable: bool
) -> bool:
    """Return whether all steps run, the last without giving memory back."""
    played = replay(recording, capacity_bytes=capacity, expandable_segments=expandable)
    retries = _retries(recording, played, capacity, phases, expandable=expandable)
    return played.ran_out_at is None and not retries.last_step


def _capacity(gpu: Gpu) -> int:
    """Return the bytes that the device has for the allocator's segments."""
    return max(0, gpu.usable_bytes - _beside(gpu))


def _beside(gpu: Gpu) -> int:
    """Return what the process takes on the device beside the allocator's segments."""
    return gpu.context_bytes + libraries_bytes(gpu)


def _retries(
    recording: Recording,
    here: Replay,
    capacity: int,
    phases: Sequence[Phase],
    *,
    expandable: bool,
) -> Retries:
    """Return the retries of all steps and of the last: those without the last are replayed."""
    if not here.num_retries or here.ran_out_at is not None:
        return Retries(total=here.num_retries, last_step=0)
    last = max(phase.step for phase in phases)
    start = next(phase.position for phase in phases if phase.step == last)
    earlier = replay(
        Recording(allocations=recording.allocations, events=recording.events[:start]),
        capacity_bytes=capacity,
        expandable_segments=expandable,
    )
    return Retries(total=here.num_retries, last_step=here.num_retries - earlier.num_retries)


def _in_bytes(one: ModuleBytes | TopAllocation) -> dict[str, Any]:
    document: dict[str, Any] = plain(one)
    return {"bytes": document.pop("num_bytes"), **document}
