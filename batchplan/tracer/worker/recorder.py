"""Watch storages being created and freed while code runs on fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROUND_BYTES = 512
"""The caching allocator's granule (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)."""


def rounded(num_bytes: int) -> int:
    """Return the bytes the CUDA allocator hands out for a request."""
    return -(-num_bytes // ROUND_BYTES) * ROUND_BYTES


class Recorder(TorchDispatchMode):
    """Counts live bytes of every storage that appears after it was made.

    Allocations are numbered in order. ``live_after`` holds the live bytes after each of them, and
    ``log`` the whole story: ``n`` where allocation n is made, ``~n`` where it is freed. Storages
    of ``ignore`` (weights, buffers, inputs) do not count.
    """

    def __init__(self, ignore: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.live_bytes = 0
        self.live_after: list[int] = []
        self.log: list[int] = []
        self.sizes: list[int] = []
        """Bytes asked for, by allocation; rounding is the allocator's business."""
        self.event_of: dict[int, int] = {}
        """Storage address to the allocation that made it; live storages only."""
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignore}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the op and register what it made."""
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.register(out, func)
        elif isinstance(out, (tuple, list)):
            for item in out:
                if isinstance(item, torch.Tensor):
                    self.register(item, func)
        return out

    def live_storages(self) -> dict[int, int]:
        """Return the rounded bytes of every live storage by the allocation that made it."""
        return {event: rounded(self.sizes[event]) for event in self.event_of.values()}

    def register(self, tensor: torch.Tensor, func: Any = None) -> None:
        """Note the tensor's storage as allocated, if it is new."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self.event_of or address in self._ignored:
            return
        self.allocated(address, storage.nbytes(), func)
        weakref.finalize(storage, self.freed, address)

    def allocated(self, address: int, num_bytes: int, func: Any) -> None:
        """Note that ``num_bytes`` now live at ``address``."""
        event = len(self.sizes)
        self.sizes.append(num_bytes)
        self.event_of[address] = event
        self.live_bytes += rounded(num_bytes)
        self.live_after.append(self.live_bytes)
        self.log.append(event)

    def freed(self, address: int) -> None:
        """Note that what lived at ``address`` is gone."""
        event = self.event_of.pop(address, None)
        if event is not None:
            self.live_bytes -= rounded(self.sizes[event])
            self.log.append(~event)
