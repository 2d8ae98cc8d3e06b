"""What the caching allocator holds beyond live tensors, and whether that can be less if it must."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.memory.device import (
    ALLOCATED_ERROR,
    ALLOCATOR_RESERVE,
    ALLOCATOR_RESERVE_SOURCE,
    RESERVED_ERROR,
    SHARDED_IN_USE_ERROR,
    UNPLAYED_ERROR,
    least_in_use_error,
    overhead_bytes,
)
from batchplan.memory.device import in_use_error as unsharded_error
from batchplan.memory.run import Played, play
from batchplan.memory.setting import Setting
from batchplan.memory.terms import ErrorBand, Term
from batchplan.spec import Batch, Gpu

NAME = "allocator reserve"
MOST_DISAGREEMENT = 0.03
"""A played peak further from the folded one than this is not believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """The term of the bill, and how sure it is."""

    term: Term
    reserved_error: ErrorBand
    in_use_error: ErrorBand
    runs_at_limit: bool = False
    """The device has less than the allocator would like, and it runs all the same."""


def in_use_error(setting: Setting) -> ErrorBand:
    """Return how far off what the driver shows may be."""
    return SHARDED_IN_USE_ERROR if setting.is_sharded else unsharded_error(setting.gpu)


LEAST_SHARE = ALLOCATED_ERROR.percent / 100
"""Of live bytes: the least reserve with which a run at the device's limit is tried."""


def least_reserve(gpu: Gpu, allocated_bytes: int) -> Reserve:
    """Return the least with which a run at the device's limit is tried, and the smallest error."""
    return _share(allocated_bytes, LEAST_SHARE, "least that a run needs", least_in_use_error(gpu))


def least_peak_bytes(allocated_bytes: int, overhead_bytes: int) -> int:
    """Return what is in use with ``least_reserve``."""
    return allocated_bytes + round(LEAST_SHARE * allocated_bytes) + overhead_bytes


def least_bound_bytes(gpu: Gpu, peak_bytes: int) -> int:
    """Return the bound of ``least_reserve`` around a peak."""
    return least_in_use_error(gpu).above(peak_bytes)


def played_reserve(setting: Setting, batch: Batch, allocated_bytes: int) -> Reserve:
    """Return the reserve of a run played without a limit, or at the device's if it must.

    At the limit the margin of the in-use error is left free, and a run that has to give memory
    back in every step does not count: it stalls each time.
    """
    played = play(setting, batch)
    if played is None or not _agrees(played.allocated_peak_bytes, allocated_bytes):
        source = ALLOCATOR_RESERVE_SOURCE
        return _share(allocated_bytes, ALLOCATOR_RESERVE, source, UNPLAYED_ERROR)
    reserve = played.reserved_peak_bytes - played.allocated_peak_bytes
    beside = overhead_bytes(setting.gpu, setting.cluster)
    usable = setting.gpu.usable_bytes
    error = in_use_error(setting)
    in_use = allocated_bytes + reserve + beside
    at_limit = None
    if error.above(in_use) > usable:
        at_limit = _played_at_limit(setting, batch, error.within(usable) - beside, allocated_bytes)
    if at_limit is not None and in_use > usable:
        reserve = max(0, at_limit.reserved_peak_bytes - allocated_bytes)
    return Reserve(
        term=Term(
            name=NAME,
            num_bytes=reserve,
            formula="segments above live tensors, optimizer steps played"
            + (" at the device's limit" if at_limit is not None else ""),
            source="c10/cuda/CUDACachingAllocator.cpp; docs/allocator.md",
        ),
        # Over several streams what is reserved is no surer than what is in use.
        reserved_error=error if setting.is_sharded else RESERVED_ERROR,
        in_use_error=error,
        runs_at_limit=at_limit is not None,
    )


def _played_at_limit(
    setting: Setting, batch: Batch, room_bytes: int, allocated_bytes: int
) -> Played | None:
    """Return the run with so much room for segments, if it goes smoothly; else None."""
    if ALLOCATED_ERROR.above(allocated_bytes) > room_bytes:
        return None
    played = play(setting, batch, capacity_bytes=room_bytes)
    return played if played is not None and played.runs_smoothly else None


def _agrees(played_bytes: int, folded_bytes: int) -> bool:
    return abs(played_bytes - folded_bytes) <= MOST_DISAGREEMENT * folded_bytes


def _share(allocated_bytes: int, share: float, source: str, error: ErrorBand) -> Reserve:
    return Reserve(
        term=Term(
            name=NAME,
            num_bytes=round(share * allocated_bytes),
            formula=f"{share:.1%} of allocated",
            source=source,
        ),
        reserved_error=error,
        in_use_error=error,
    )
