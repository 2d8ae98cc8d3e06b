"""A recording played through the allocator, and the smallest card on which it runs."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.allocator.blocks import Block
from batchplan.allocator.caching import CachingAllocator, OutOfMemoryError
from batchplan.allocator.live import live_peak
from batchplan.allocator.recording import Recording
from batchplan.allocator.sizes import ROUND_LARGE, round_up

MAX_REPLAYS = 10
"""How many times the search for the smallest card replays the recording."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What the allocator's counters show after a recording, or up to where it ran out."""

    allocated_peak_bytes: int
    """The most bytes of blocks in use, as ``torch.cuda.max_memory_allocated`` counts: at least
    the live bytes, because a large block keeps a remainder of up to 1 MiB."""
    allocated_peak_at: int
    """Position of the event that reaches it; 0 when nothing is allocated."""
    reserved_at_allocated_peak_bytes: int
    reserved_peak_bytes: int
    """The most bytes held in segments, as ``torch.cuda.max_memory_reserved`` counts."""
    num_retries: int
    """How often all that was free went back to the driver: each one stalls the device."""
    ran_out_at: int | None
    """Position of the event that found no room; None when the whole recording ran."""


def replay(
    recording: Recording,
    *,
    capacity_bytes: int | None = None,
    expandable_segments: bool = False,
) -> Replay:
    """Play a recording through a fresh allocator.

    ``capacity_bytes`` is what segments may take in all: the card's memory less the CUDA context
    and what others hold; None for no limit. Storages of 0 bytes take nothing.
    """
    allocator = CachingAllocator(
        capacity_bytes=capacity_bytes, expandable_segments=expandable_segments
    )
    blocks: dict[int, Block] = {}
    highest = highest_at = reserved_at_highest = 0
    ran_out_at = None
    for position, event in enumerate(recording.events):
        if event < 0:
            freed = blocks.pop(~event, None)
            if freed is not None:
                allocator.free(freed)
            continue
        one = recording.allocations[event]
        if one.num_bytes == 0:
            continue
        try:
            blocks[event] = allocator.malloc(one.num_bytes, one.stream)
        except OutOfMemoryError:
            ran_out_at = position
            break
        if allocator.allocated_bytes > highest:
            highest, highest_at = allocator.allocated_bytes, position
            reserved_at_highest = allocator.reserved_bytes
    return Replay(
        allocated_peak_bytes=highest,
        allocated_peak_at=highest_at,
        reserved_at_allocated_peak_bytes=reserved_at_highest,
        reserved_peak_bytes=allocator.reserved_peak_bytes,
        num_retries=allocator.num_retries,
        ran_out_at=ran_out_at,
    )


def smallest_card_bytes(recording: Recording, *, expandable_segments: bool = False) -> int:
    """Return the bytes for segments with which a recording just runs, a multiple of 2 MiB.

    It lies between the peak of the live bytes and the reserved peak without a limit. Below the
    latter the allocator gives cached segments back to the driver and asks again, so it can run, at
    the price of ``num_retries``.

    The recording does run with the bytes returned: they were replayed. That it runs with any more,
    and not with fewer, is not certain, since another capacity leads to other fragments; the search
    halves the span as if it were. Ten replays make it exact to 2 MiB for a span up to 1 GiB, and
    to 1/512 of the span beyond.
    """
    low = round_up(live_peak(recording).num_bytes, ROUND_LARGE) - ROUND_LARGE
    high = replay(recording, expandable_segments=expandable_segments).reserved_peak_bytes
    replays = 1
    while high - low > ROUND_LARGE and replays < MAX_REPLAYS:
        middle = (low + high) // 2 // ROUND_LARGE * ROUND_LARGE
        tried = replay(recording, capacity_bytes=middle, expandable_segments=expandable_segments)
        replays += 1
        if tried.ran_out_at is None:
            # With a capacity of what it reserved at most, every call would go the same way.
            high = tried.reserved_peak_bytes
        else:
            low = middle
    return high
