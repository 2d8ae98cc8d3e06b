"""A replay as a memory snapshot of torch, for https://pytorch.org/memory_viz.

The fields are those of ``torch.cuda.memory._snapshot``: the whole trace of the allocator's
actions, and the segments as they are when it ends. The page draws time and peak from the trace.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from batchplan.allocator.blocks import Block
from batchplan.allocator.caching import CachingAllocator, OutOfMemoryError, Segment
from batchplan.allocator.recording import Allocation, Recording

PICKLE_PROTOCOL = 4
"""What torch's own snapshots are written with; the page's reader knows the codes of no other."""
NO_POOL = (0, 0)
"""The pool id of memory outside CUDA graphs and user pools."""

Frames = list[dict[str, Any]]


def snapshot(
    recording: Recording,
    *,
    capacity_bytes: int | None = None,
    expandable_segments: bool = False,
) -> dict[str, Any]:
    """Return the snapshot of a recording played through a fresh allocator.

    Each allocation has one frame, of its module and op, and its kind as category; its phase is in
    ``user_metadata``. ``time_us`` counts events, because a recording has no clock. Where the
    allocator runs out of memory the trace ends, with an ``oom`` entry.
    """
    trace = _Trace(recording)
    allocator = CachingAllocator(
        capacity_bytes=capacity_bytes,
        expandable_segments=expandable_segments,
        on_segment=trace.on_segment,
    )
    blocks: dict[int, Block] = {}
    for position, event in enumerate(recording.events):
        number = event if event >= 0 else ~event
        one = recording.allocations[number]
        if one.num_bytes == 0:
            continue
        trace.begin(position, one)
        if event < 0:
            block = blocks.pop(number)
            for action in ("free_requested", "free_completed"):
                trace.add(action, block.address, one.num_bytes, one.stream)
            allocator.free(block)
            continue
        try:
            block = allocator.malloc(one.num_bytes, one.stream)
        except OutOfMemoryError as error:
            trace.add_oom(error, one)
            break
        blocks[number] = block
        trace.add("alloc", block.address, one.num_bytes, one.stream)
    owners = {block.address: recording.allocations[number] for number, block in blocks.items()}
    return {
        "segments": [_segment(one, owners, trace) for one in allocator.segments()],
        "device_traces": [trace.entries],
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": f"expandable_segments:{expandable_segments}",
            "max_split_size": -1,
            "garbage_collection_threshold": 0.0,
            "expandable_segments": expandable_segments,
            "roundup_power2_divisions": {},
        },
        "external_annotations": [],
    }


def write_snapshot(
    path: Path,
    recording: Recording,
    *,
    capacity_bytes: int | None = None,
    expandable_segments: bool = False,
) -> None:
    """Write the snapshot of a recording as a pickle; an earlier file stays until it is whole.

    Raises:
        OSError: when the file cannot be written.
    """
    data = snapshot(
        recording, capacity_bytes=capacity_bytes, expandable_segments=expandable_segments
    )
    temporary = path.with_name(f".{path.name}-{os.getpid()}.writing")
    try:
        with temporary.open("wb") as stream:
            pickle.dump(data, stream, protocol=PICKLE_PROTOCOL)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class _Trace:
    """The allocator's actions in time order, each with the frames of the allocation behind it."""

    def __init__(self, recording: Recording) -> None:
        self.entries: list[dict[str, Any]] = []
        self._recording = recording
        self._frames: dict[tuple[str, str], Frames] = {}
        self._position = 0
        self._phase = ""
        self._category = ""
        self._current: Frames = []

    def begin(self, position: int, one: Allocation) -> None:
        """Say which event the actions that follow belong to."""
        self._position = position
        self._phase = self._recording.phase_at(position)
        self._category = one.kind
        self._current = self.frames(one)

    def frames(self, one: Allocation) -> Frames:
        """Return the stack of an allocation: one list for all of its module and op."""
        key = (one.module, one.op)
        if key not in self._frames:
            self._frames[key] = [{"filename": one.module, "line": 0, "name": one.op}]
        return self._frames[key]

    def on_segment(self, action: str, address: int, num_bytes: int, stream: int) -> None:
        self.add(action, address, num_bytes, stream)

    def add(self, action: str, address: int, num_bytes: int, stream: int) -> None:
        self._append({"action": action, "addr": address, "size": num_bytes, "stream": stream})

    def add_oom(self, error: OutOfMemoryError, one: Allocation) -> None:
        free = error.capacity_bytes - error.reserved_bytes
        self._append(
            {"action": "oom", "device_free": free, "size": one.num_bytes, "stream": one.stream}
        )

    def _append(self, entry: dict[str, Any]) -> None:
        self.entries.append(
            {
                **entry,
                "time_us": self._position,
                "frames": self._current,
                "category": self._category,
                "pool_id": NO_POOL,
                "user_metadata": self._phase,
            }
        )


def _segment(one: Segment, owners: dict[int, Allocation], trace: _Trace) -> dict[str, Any]:
    in_use = sum(block.size for block in one.blocks if block.allocated)
    return {
        "device": 0,
        "address": one.address,
        "total_size": one.num_bytes,
        "allocated_size": in_use,
        "active_size": in_use,
        "requested_size": sum(block.requested_size for block in one.blocks),
        "stream": one.stream,
        "segment_type": "small" if one.is_small else "large",
        "segment_pool_id": NO_POOL,
        "is_expandable": one.is_expandable,
        "frames": [],
        "blocks": [
            {
                "address": block.address,
                "size": block.size,
                "requested_size": block.requested_size,
                "state": "active_allocated" if block.allocated else "inactive",
                "frames": trace.frames(owners[block.address]) if block.allocated else [],
            }
            for block in one.blocks
        ],
    }
