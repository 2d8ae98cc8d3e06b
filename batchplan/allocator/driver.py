"""The CUDA driver as the allocator sees it: memory up to a limit, and addresses without one.

Driver memory is paged, so holes between segments can always be used again: only the sum counts.
"""

from __future__ import annotations

from collections.abc import Callable

from batchplan.allocator.sizes import LARGE_BUFFER, round_up

FIRST_ADDRESS = round_up(0x7F00_0000_0000, LARGE_BUFFER)
"""Where a process on Linux usually finds device memory."""

SegmentListener = Callable[[str, int, int, int], None]
"""Called with an action as torch's snapshots name it, an address, bytes and a stream."""


class Driver:
    """What cudaMalloc and cuMemCreate hand out, in bytes."""

    __slots__ = (
        "_listener",
        "_next_address",
        "capacity_bytes",
        "reserved_bytes",
        "reserved_peak_bytes",
    )

    def __init__(self, capacity_bytes: int | None, listener: SegmentListener | None) -> None:
        self.capacity_bytes = capacity_bytes
        self.reserved_bytes = 0
        self.reserved_peak_bytes = 0
        self._listener = listener
        self._next_address = FIRST_ADDRESS

    def new_addresses(self, num_bytes: int) -> int:
        """Return the start of a range never handed out before.

        It is a multiple of the largest page, so that pages can be counted from address 0.
        """
        address = self._next_address
        self._next_address += round_up(num_bytes, LARGE_BUFFER)
        return address

    def has_room(self, num_bytes: int) -> bool:
        """Return whether so much more can be taken."""
        return self.capacity_bytes is None or self.reserved_bytes + num_bytes <= self.capacity_bytes

    def take(self, action: str, address: int, num_bytes: int, stream: int) -> None:
        """Put memory behind addresses; ask ``has_room`` first."""
        self.reserved_bytes += num_bytes
        self.reserved_peak_bytes = max(self.reserved_peak_bytes, self.reserved_bytes)
        if self._listener is not None:
            self._listener(action, address, num_bytes, stream)

    def give_back(self, action: str, address: int, num_bytes: int, stream: int) -> None:
        """Take the memory from behind addresses."""
        self.reserved_bytes -= num_bytes
        if self._listener is not None:
            self._listener(action, address, num_bytes, stream)
