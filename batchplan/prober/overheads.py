"""What measurements teach about a device: the bytes that no tensor and no segment accounts for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from batchplan.memory.device import ALLOCATED_ERROR, RESERVED_ERROR
from batchplan.prober.curve import is_pressed
from batchplan.prober.measurement import Measurement, contributed, load_all
from batchplan.prober.trial import Device
from batchplan.sources.gpus import match_row
from batchplan.spec import Caveat, Gpu
from batchplan.units import format_bytes

FEWEST_WITH_SPREAD = 3
# Student's t, 97.5 %, by degrees of freedom from 2 (any table of it); 10 stands for more.
T_QUANTILES = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """Of one device, over its measurements."""

    context_bytes: int
    """Median of what was in use before the first tensor."""
    libraries_bytes: int
    """Median of what was in use beyond context and segments: loaded kernels, slack."""
    spread_bytes: int
    """Largest less smallest sum of both."""
    error_percent: float
    """Half-width of the 95 % interval of what is in use, as far as the measurements support it."""
    num_measurements: int


def overheads(measurements: Iterable[Measurement], gpu: Gpu) -> Overheads | None:
    """Return what the measurements of this device say; None without one that can.

    Runs of one rank on a GPU count: with several, the communicator cannot be told apart. With
    ``FEWEST_WITH_SPREAD`` runs the error is the 95 % prediction interval of the next deviation
    from the estimate (Student's t); with fewer there is no spread, and what is left is the
    reserve's own error, or what was seen if that is more. It is never below that of live tensors.
    """
    runs = [each for each in measurements if _teaches(each, gpu)]
    if not runs:
        return None
    contexts, besides = (
        [_measured(each, name) for each in runs] for name in ("context", "overheads")
    )
    context = round(median(contexts))
    libraries = round(
        median(max(0, beside - own) for beside, own in zip(besides, contexts, strict=True))
    )
    deviations = [
        _measured(each, "in use") / (_predicted(each, "reserved") + context + libraries) - 1
        for each in runs
        if _is_undisturbed(each)
    ]
    return Overheads(
        context_bytes=context,
        libraries_bytes=libraries,
        spread_bytes=max(besides) - min(besides),
        error_percent=error_percent(deviations),
        num_measurements=len(runs),
    )


def error_percent(deviations: Sequence[float]) -> float:
    """Return the half-width that deviations of what is in use support, in percent.

    >>> error_percent([0.002]), error_percent([0.001, -0.002, 0.0005, 0.0])
    (3.0, 1.0)
    """
    number = len(deviations)
    if number >= FEWEST_WITH_SPREAD:
        quantile = T_QUANTILES[min(number - 3, len(T_QUANTILES) - 1)]
        half = abs(fmean(deviations)) + quantile * stdev(deviations) * math.sqrt(1 + 1 / number)
        floor = ALLOCATED_ERROR.percent
    else:
        half = max((abs(each) for each in deviations), default=0.0)
        floor = RESERVED_ERROR.percent
    return max(floor, math.ceil(1000 * half) / 10)


def teach(gpu: Gpu, measurements: Iterable[Measurement]) -> Gpu:
    """Return the device with its overheads as measured; unchanged where nothing was."""
    found = overheads(measurements, gpu)
    if found is None:
        return gpu
    number = found.num_measurements
    source = f"measured on this device ({_runs(number)} of `batchplan probe --save`)"
    return gpu.model_copy(
        update={
            "context_bytes": found.context_bytes,
            "context_source": source,
            "libraries_bytes": found.libraries_bytes,
            "overhead_source": source,
            "in_use_error_percent": found.error_percent,
            "num_measurements": number,
        }
    )


def taught(gpu: Gpu) -> tuple[Gpu, tuple[Caveat, ...]]:
    """Return the device as measurements have it, and what to say about that.

    The user's own come first: drivers and versions differ. Without one, contributed ones count.
    """
    own = load_all()
    known = teach(gpu, own.measurements)
    if known is gpu:
        known = teach(gpu, contributed().measurements)
    if known is gpu:
        return gpu, own.caveats
    text = (
        f"Context ({format_bytes(known.context_bytes)}) and libraries "
        f"({format_bytes(known.libraries_bytes or 0)}) as measured in "
        f"{_runs(known.num_measurements)} on this device ({gpu.name}), not as the table has them."
    )
    return known, (*own.caveats, Caveat(code="measured-overheads", text=text))


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def _teaches(measured: Measurement, gpu: Gpu) -> bool:
    return (
        measured.device.kind is Device.CUDA
        and measured.batch.num_ranks == 1
        and all(measured.compared(name) for name in ("context", "overheads", "in use", "reserved"))
        and not _names(measured.device.name).isdisjoint(_names(gpu.name))
    )


def _is_undisturbed(measured: Measurement) -> bool:
    """Return whether limit and missing ranks left what was in use as the estimate means it."""
    best = measured.best
    return best is not None and not is_pressed(best) and measured.as_rank_of is None


def _names(name: str) -> set[str]:
    """Return a driver's or catalog's name with that of the catalog's row that it matches."""
    row = match_row(name)
    return {name} if row is None else {name, row.name}


def _measured(measured: Measurement, name: str) -> int:
    return next(each.measured_bytes for each in measured.comparison if each.name == name)


def _predicted(measured: Measurement, name: str) -> int:
    return next(each.predicted_bytes for each in measured.comparison if each.name == name)
