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

    ``live_after`` holds the live bytes after each allocation, in order; an allocation's position
    in it is its event number. Storages of ``ignore`` (weights, buffers, inputs) do not count.
    """

    def __init__(self, ignore: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.live_bytes = 0
        self.live_after: list[int] = []
        self.event_of: dict[int, int] = {}
        """Storage address to the event that made it; live storages only."""
        self._sizes: dict[int, int] = {}
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignore}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the op and register what it made."""
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self._register(out)
        elif isinstance(out, (tuple, list)):
            for item in out:
                if isinstance(item, torch.Tensor):
                    self._register(item)
        return out

    def live_storages(self) -> dict[int, int]:
        """Return the bytes of every live storage by the event that made it."""
        return {event: self._sizes[address] for address, event in self.event_of.items()}

    def _register(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._sizes or address in self._ignored:
            return
        num_bytes = rounded(storage.nbytes())
        self._sizes[address] = num_bytes
        self.event_of[address] = len(self.live_after)
        self.live_bytes += num_bytes
        self.live_after.append(self.live_bytes)
        weakref.finalize(storage, self._free, address)

    def _free(self, address: int) -> None:
        num_bytes = self._sizes.pop(address, None)
        if num_bytes is not None:
            self.live_bytes -= num_bytes
            del self.event_of[address]
