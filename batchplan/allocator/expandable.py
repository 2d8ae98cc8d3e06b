"""Expandable segments: one long range of addresses whose pages are mapped when needed.

Source: ``try_allocate_expandable_block``, ``map_block`` and ``unmap_block`` of
``c10/cuda/CUDACachingAllocator.cpp``. There a range has 1 1/8 times the card's memory and another
one is opened when it is full; here it is too long to fill up.
"""

from __future__ import annotations

from batchplan.allocator.blocks import Block, Pool
from batchplan.allocator.driver import Driver
from batchplan.allocator.sizes import round_up

ADDRESS_PAGES = 2**24
"""Pages of one range of addresses: 32 TiB for small blocks, 320 TiB for large ones."""


def grow(pool: Pool, size: int, driver: Driver) -> Block | None:
    """Return a free block in no list with at least ``size`` mapped bytes; None without room.

    Pages that were mapped before the room ran out stay mapped, as a free block.
    """
    block = _first_with_addresses(pool, size) or _open_range(pool, size, driver)
    if not block.mapped:
        mapped = _map(block, min(block.size, size), driver)
        if mapped is None:
            return None
        block = mapped
    while block.size < size:
        behind = block.next
        assert behind is not None, "the range was chosen because it is long enough"
        mapped = _map(behind, min(behind.size, size - block.size), driver)
        if mapped is None:
            return None
        block = mapped
    pool.delist(block)
    return block


def unmap_whole_pages(block: Block, driver: Driver) -> None:
    """Give back every page that lies inside a free block; what is left of it stays free."""
    pool, page = block.pool, block.pool.page_size
    begin = round_up(block.address, page)
    end = (block.address + block.size) // page * page
    if begin >= end:
        return
    pool.delist(block)
    if end < block.address + block.size:
        pool.enlist(block.split(end - block.address))
    middle = block
    if begin > block.address:
        middle = block.split(begin - block.address)
        pool.enlist(block)
    middle.mapped = False
    driver.give_back("segment_unmap", begin, end - begin, pool.stream)
    unmapped = pool.settle(middle)
    if unmapped.is_whole:
        pool.delist(unmapped)
        del pool.first_blocks[unmapped.address]


def _first_with_addresses(pool: Pool, size: int) -> Block | None:
    """Return the lowest unmapped block, or the free one before it, with addresses enough."""
    for unmapped in pool.unmapped_blocks():
        before = unmapped.prev
        first = before if before is not None and not before.allocated else unmapped
        num_bytes = 0
        block: Block | None = first
        while block is not None and not block.allocated and num_bytes < size:
            num_bytes += block.size
            block = block.next
        if num_bytes >= size:
            return first
    return None


def _open_range(pool: Pool, size: int, driver: Driver) -> Block:
    length = max(ADDRESS_PAGES * pool.page_size, round_up(size, pool.page_size))
    block = Block(pool=pool, address=driver.new_addresses(length), size=length, mapped=False)
    pool.first_blocks[block.address] = block
    pool.enlist(block)
    return block


def _map(unmapped: Block, num_bytes: int, driver: Driver) -> Block | None:
    """Map whole pages from the start of an unmapped block; return the free block they are in."""
    pool = unmapped.pool
    num_bytes = round_up(num_bytes, pool.page_size)
    if not driver.has_room(num_bytes):
        return None
    pool.delist(unmapped)
    if num_bytes < unmapped.size:
        pool.enlist(unmapped.split(num_bytes))
    unmapped.mapped = True
    driver.take("segment_map", unmapped.address, num_bytes, pool.stream)
    return pool.settle(unmapped)
