"""Blocks, and the pools that keep the free ones: split, join and look up.

A segment is a row of blocks linked in address order. Of two blocks that join, the left one lives
on, so the first block of a segment is the same object for as long as the segment exists.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from batchplan.allocator.sizes import LARGE_BUFFER, SMALL_BUFFER


class Block:
    """A range of addresses in one segment. Sizes are bytes."""

    __slots__ = ("address", "allocated", "mapped", "next", "pool", "prev", "requested_size", "size")

    def __init__(self, *, pool: Pool, address: int, size: int, mapped: bool = True) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.mapped = mapped
        """Whether memory is behind the addresses; parts of expandable segments have none."""
        self.allocated = False
        self.requested_size = 0
        """What the caller asked for, while allocated."""
        self.prev: Block | None = None
        self.next: Block | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the block is all of its segment."""
        return self.prev is None and self.next is None

    @property
    def expandable_size(self) -> int:
        """Bytes it could have once the addresses behind it are mapped."""
        behind = self.next
        return self.size + (behind.size if behind is not None and not behind.mapped else 0)

    def split(self, size: int) -> Block:
        """Cut the block to ``size`` and return the rest, which is in no list yet."""
        rest = Block(
            pool=self.pool,
            address=self.address + size,
            size=self.size - size,
            mapped=self.mapped,
        )
        rest.prev, rest.next = self, self.next
        if rest.next is not None:
            rest.next.prev = rest
        self.next, self.size = rest, size
        return rest

    def absorb_next(self) -> None:
        """Take over the next block, which must be in no list."""
        gone = self.next
        assert gone is not None
        self.size += gone.size
        self.next = gone.next
        if gone.next is not None:
            gone.next.prev = self


class Pool:
    """The small or the large blocks of one stream."""

    __slots__ = (
        "_unmapped_at",
        "first_blocks",
        "free",
        "is_small",
        "stream",
        "unmapped",
    )

    def __init__(self, *, is_small: bool, stream: int) -> None:
        self.is_small = is_small
        self.stream = stream
        self.free: list[tuple[int, int, Block]] = []
        """(size, address, block) of the free ones, in the order of the search for the best fit."""
        self.unmapped: list[int] = []
        """Addresses of the blocks without memory, in order."""
        self.first_blocks: dict[int, Block] = {}
        """The first block of every segment, by its address."""
        self._unmapped_at: dict[int, Block] = {}

    @property
    def page_size(self) -> int:
        """Bytes that an expandable segment of this pool maps at a time."""
        return SMALL_BUFFER if self.is_small else LARGE_BUFFER

    def take(self, index: int) -> Block:
        """Remove the block at a place of ``free`` from it, and return it."""
        return self.free.pop(index)[2]

    def unmapped_blocks(self) -> list[Block]:
        """Return the blocks without memory in address order."""
        return [self._unmapped_at[address] for address in self.unmapped]

    def best_fit(self, size: int) -> int:
        """Return the place in ``free`` of the smallest block that is large enough, or its end."""
        return bisect_left(self.free, (size,))

    def enlist(self, block: Block) -> None:
        """Enter a block into the list of the free or of the unmapped ones."""
        if block.mapped:
            insort(self.free, (block.size, block.address, block))
        else:
            insort(self.unmapped, block.address)
            self._unmapped_at[block.address] = block

    def delist(self, block: Block) -> None:
        """Remove a block from the list it is in, before its size, address or state changes."""
        if block.mapped:
            del self.free[bisect_left(self.free, (block.size, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, block.address)]
            del self._unmapped_at[block.address]

    def settle(self, block: Block) -> Block:
        """Join a block in no list, not allocated, with its like beside it; enlist what results."""
        before = block.prev
        if before is not None and not before.allocated and before.mapped == block.mapped:
            self.delist(before)
            before.absorb_next()
            block = before
        after = block.next
        if after is not None and not after.allocated and after.mapped == block.mapped:
            self.delist(after)
            block.absorb_next()
        self.enlist(block)
        return block
