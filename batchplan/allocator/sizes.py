"""How torch's CUDA allocator rounds: the bytes of a block, and of the segment made for it.

Names and values are those of ``c10/core/AllocatorConfig.h`` (torch 2.13; the same values are in
``c10/cuda/CUDACachingAllocator.cpp`` since 2.4). All are bytes.
"""

from __future__ import annotations

from batchplan.units import MIB

MIN_BLOCK_SIZE = 512
"""kMinBlockSize: every block is a multiple of it."""
SMALL_SIZE = MIB
"""kSmallSize: the largest block of a small pool."""
SMALL_BUFFER = 2 * MIB
"""kSmallBuffer: the segment, or the page, that small blocks share."""
LARGE_BUFFER = 20 * MIB
"""large_segment_size (kLargeBuffer): the same for large blocks below MIN_LARGE_ALLOC."""
MIN_LARGE_ALLOC = 10 * MIB
"""kMinLargeAlloc: from here on a block that finds no room has a segment made to its measure."""
ROUND_LARGE = 2 * MIB
"""kRoundLarge: such a segment is a multiple of it, and so is every other."""
MAX_NON_SPLIT_ROUNDING_SIZE = 20 * MIB
"""max_non_split_rounding_size: how much larger than asked an oversize block may be."""


def round_up(num_bytes: int, multiple: int) -> int:
    """Return the smallest multiple that is not below.

    >>> round_up(513, 512), round_up(1024, 512), round_up(0, 512)
    (1024, 1024, 0)
    """
    return -(-num_bytes // multiple) * multiple


def round_size(num_bytes: int) -> int:
    """Return the bytes of the block for a request; one of 0 bytes is never made into a block.

    >>> round_size(1), round_size(512), round_size(513), round_size(0)
    (512, 512, 1024, 0)
    """
    return round_up(num_bytes, MIN_BLOCK_SIZE)


def segment_size(block_size: int) -> int:
    """Return the bytes that cudaMalloc is asked for when no free block is large enough.

    >>> [segment_size(size) // MIB for size in (512, MIB, MIB + 512, 10 * MIB, 11 * MIB)]
    [2, 2, 20, 10, 12]
    """
    if block_size <= SMALL_SIZE:
        return SMALL_BUFFER
    if block_size < MIN_LARGE_ALLOC:
        return LARGE_BUFFER
    return round_up(block_size, ROUND_LARGE)
