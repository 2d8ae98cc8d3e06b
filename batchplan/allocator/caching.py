"""A model of torch's CUDA caching allocator, call by call.

Source: ``DeviceCachingAllocator`` in ``c10/cuda/CUDACachingAllocator.cpp``, torch 2.4 to 2.13.
``docs/allocator.md`` lists the rules and what is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from batchplan.allocator.blocks import Block, Pool
from batchplan.allocator.driver import Driver, SegmentListener
from batchplan.allocator.expandable import grow, unmap_whole_pages
from batchplan.allocator.sizes import (
    LARGE_BUFFER,
    MAX_NON_SPLIT_ROUNDING_SIZE,
    MIN_BLOCK_SIZE,
    SMALL_SIZE,
    round_size,
    segment_size,
)
from batchplan.errors import TraceError
from batchplan.units import MIB


class OutOfMemoryError(Exception):
    """The driver has no room, even after every free segment went back. All are bytes."""

    def __init__(
        self, *, num_bytes: int, allocated_bytes: int, reserved_bytes: int, capacity_bytes: int
    ) -> None:
        super().__init__(
            f"{num_bytes} bytes asked for; {allocated_bytes} allocated and {reserved_bytes} "
            f"reserved of {capacity_bytes}"
        )
        self.num_bytes = num_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes
        self.capacity_bytes = capacity_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Memory from the driver at addresses in a row: a segment, or mapped pages of one."""

    stream: int
    is_small: bool
    is_expandable: bool
    blocks: tuple[Block, ...]

    @property
    def address(self) -> int:
        """The first one."""
        return self.blocks[0].address

    @property
    def num_bytes(self) -> int:
        """All of it, used or not."""
        return sum(block.size for block in self.blocks)


class CachingAllocator:
    """Blocks cut from segments that are kept for reuse.

    Args:
        capacity_bytes: what the driver can hand out to segments; None for no limit.
        expandable_segments: torch's option of the same name.
        max_split_bytes: torch's ``max_split_size_mb`` in bytes; None for no limit, its default.
        on_segment: called whenever memory is taken from the driver or given back.

    Raises:
        TraceError: for a ``max_split_bytes`` that torch would refuse.
    """

    def __init__(
        self,
        *,
        capacity_bytes: int | None = None,
        expandable_segments: bool = False,
        max_split_bytes: int | None = None,
        on_segment: SegmentListener | None = None,
    ) -> None:
        if max_split_bytes is not None and (
            max_split_bytes <= LARGE_BUFFER or max_split_bytes % MIB
        ):
            raise TraceError(
                f"max_split_bytes is {max_split_bytes}; torch takes whole MiB above "
                f"{LARGE_BUFFER // MIB}."
            )
        self._driver = Driver(capacity_bytes, on_segment)
        self._expandable = expandable_segments
        self._max_split = max_split_bytes
        self._pools: dict[tuple[bool, int], Pool] = {}
        self._allocated_bytes = 0
        self._allocated_peak_bytes = 0
        self._num_retries = 0

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the blocks in use, as ``torch.cuda.memory_allocated`` counts them."""
        return self._allocated_bytes

    @property
    def allocated_peak_bytes(self) -> int:
        """The most ``allocated_bytes`` so far."""
        return self._allocated_peak_bytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes taken from the driver, as ``torch.cuda.memory_reserved`` counts them."""
        return self._driver.reserved_bytes

    @property
    def reserved_peak_bytes(self) -> int:
        """The most ``reserved_bytes`` so far."""
        return self._driver.reserved_peak_bytes

    @property
    def num_retries(self) -> int:
        """How often everything free went back to the driver to make room.

        It is the ``num_alloc_retries`` of ``torch.cuda.memory_stats``.
        """
        return self._num_retries

    def segments(self) -> Iterator[Segment]:
        """Yield the memory held, in address order; live blocks, so look before the next call."""
        first_blocks = [
            block for pool in self._pools.values() for block in pool.first_blocks.values()
        ]
        for first in sorted(first_blocks, key=lambda block: block.address):
            for row in _mapped_rows(first):
                yield Segment(
                    stream=first.pool.stream,
                    is_small=first.pool.is_small,
                    is_expandable=self._expandable,
                    blocks=row,
                )

    def malloc(self, num_bytes: int, stream: int = 0) -> Block:
        """Return a block of at least ``num_bytes`` for work on ``stream``.

        Raises:
            OutOfMemoryError: when the driver has no room for it.
            TraceError: when ``num_bytes`` is below one; torch makes no block for empty tensors.
        """
        if num_bytes < 1:
            raise TraceError(f"A block of {num_bytes} bytes is never made.")
        size = round_size(num_bytes)
        pool = self._pool(size, stream)
        block = self._reuse(pool, size) or self._obtain(pool, size)
        if block is None:
            assert self._driver.capacity_bytes is not None
            raise OutOfMemoryError(
                num_bytes=num_bytes,
                allocated_bytes=self._allocated_bytes,
                reserved_bytes=self._driver.reserved_bytes,
                capacity_bytes=self._driver.capacity_bytes,
            )
        if self._should_split(block, size):
            pool.enlist(block.split(size))
        block.allocated = True
        block.requested_size = num_bytes
        self._allocated_bytes += block.size
        if self._allocated_bytes > self._allocated_peak_bytes:
            self._allocated_peak_bytes = self._allocated_bytes
        return block

    def free(self, block: Block) -> None:
        """Keep a block for reuse, joined with the free ones beside it.

        Raises:
            TraceError: when the block is free already.
        """
        if not block.allocated:
            raise TraceError(f"The block at {block.address:#x} is freed a second time.")
        block.allocated = False
        block.requested_size = 0
        self._allocated_bytes -= block.size
        block.pool.settle(block)

    def _pool(self, size: int, stream: int) -> Pool:
        key = (size <= SMALL_SIZE, stream)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(is_small=key[0], stream=stream)
        return pool

    def _reuse(self, pool: Pool, size: int) -> Block | None:
        """Return the best fit among the free blocks, taken from their list (get_free_block)."""
        index = pool.best_fit(size)
        if index == len(pool.free):
            return None
        block = pool.free[index][2]
        if self._expandable:
            # A block that can grow counts as large as it can get, so that it is kept for last.
            for later in range(index + 1, len(pool.free)):
                larger = pool.free[later][2]
                if larger.expandable_size >= block.expandable_size:
                    break
                index, block = later, larger
        if self._max_split is not None:
            if size < self._max_split <= block.size:
                return None
            if size >= self._max_split and block.size >= size + MAX_NON_SPLIT_ROUNDING_SIZE:
                return None
        return pool.take(index)

    def _obtain(self, pool: Pool, size: int) -> Block | None:
        """Return a new block, after giving memory back to the driver where that is needed."""
        block = self._from_driver(pool, size)
        if block is None and self._release_oversize(pool, size):
            block = self._from_driver(pool, size)
        if block is None:
            self._release_cached()
            self._num_retries += 1
            block = self._from_driver(pool, size)
        return block

    def _from_driver(self, pool: Pool, size: int) -> Block | None:
        if self._expandable:
            return grow(pool, size, self._driver)
        num_bytes = segment_size(size)
        if not self._driver.has_room(num_bytes):
            return None
        block = Block(pool=pool, address=self._driver.new_addresses(num_bytes), size=num_bytes)
        pool.first_blocks[block.address] = block
        self._driver.take("segment_alloc", block.address, num_bytes, pool.stream)
        return block

    def _should_split(self, block: Block, size: int) -> bool:
        remaining = block.size - size
        if block.pool.is_small or self._expandable:
            return remaining >= MIN_BLOCK_SIZE
        return remaining > SMALL_SIZE and (self._max_split is None or size < self._max_split)

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """Give back oversize free blocks of the pool (release_available_cached_blocks).

        A free block of ``max_split_bytes`` or more is always a whole segment.
        """
        if self._max_split is None or self._expandable:
            return False
        wanted = max(size, self._max_split)
        index = pool.best_fit(wanted)
        if index < len(pool.free):
            self._release(pool.free[index][2])
            return True
        released = 0
        while released < wanted and pool.free and pool.free[-1][0] >= self._max_split:
            released += pool.free[-1][0]
            self._release(pool.free[-1][2])
        return released >= wanted

    def _release_cached(self) -> None:
        """Give back every free segment, or page, of every pool (release_cached_blocks)."""
        for pool in self._pools.values():
            for _, _, block in tuple(pool.free):
                if self._expandable:
                    unmap_whole_pages(block, self._driver)
                elif block.is_whole:
                    self._release(block)

    def _release(self, block: Block) -> None:
        block.pool.delist(block)
        del block.pool.first_blocks[block.address]
        self._driver.give_back("segment_free", block.address, block.size, block.pool.stream)


def _mapped_rows(first: Block) -> Iterator[tuple[Block, ...]]:
    row: list[Block] = []
    block: Block | None = first
    while block is not None:
        if block.mapped:
            row.append(block)
        elif row:
            yield tuple(row)
            row = []
        block = block.next
    if row:
        yield tuple(row)
