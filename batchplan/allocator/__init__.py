"""A recorded step, replayed through a model of torch's CUDA caching allocator."""

from batchplan.allocator.blocks import Block
from batchplan.allocator.caching import CachingAllocator, OutOfMemoryError, Segment
from batchplan.allocator.live import LivePeak, live_peak
from batchplan.allocator.recording import Allocation, Recording
from batchplan.allocator.replay import Replay, replay, smallest_card_bytes
from batchplan.allocator.snapshot import snapshot, write_snapshot

__all__ = [
    "Allocation",
    "Block",
    "CachingAllocator",
    "LivePeak",
    "OutOfMemoryError",
    "Recording",
    "Replay",
    "Segment",
    "live_peak",
    "replay",
    "smallest_card_bytes",
    "snapshot",
    "write_snapshot",
]
