"""How much memory a trial takes, and the hard limit it runs under.

CUDA: torch's caching allocator keeps both peaks and has a limit of its own; the driver (NVML)
shows what the process takes besides. ROCm answers under the same names.

CPU: the kernel refuses private writable memory beyond ``RLIMIT_DATA`` (getrlimit(2), Linux 4.7),
and then malloc, and with it torch's allocator, really fails. The limit starts at the baseline,
imports and the module on ``meta``: tensors count, libraries do not. glibc keeps the highest sum of
mapped blocks itself (``malloc_stats``), and as ``probe/launch.py`` has blocks of 64 KiB or more
mapped singly, that is the peak of live tensors to the page. What else grew (small blocks, stacks
of threads) is added for the process as a whole.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
from contextlib import suppress
from typing import Any

import torch

KIB = 1024


def meter_for(request: dict[str, Any], device: torch.device) -> Any:
    """Return the meter of the request's device."""
    return {"cuda": CudaMeter, "cpu": CpuMeter}[device.type](request["memory_limit_bytes"], device)


class CudaMeter:
    """Figures of torch's allocator and the driver for one device."""

    def __init__(self, limit_bytes: int | None, device: torch.device) -> None:
        self._device = device
        self._limit_bytes = limit_bytes
        self._context: int | None = None
        self._in_use: int | None = None
        # Before torch makes the context; others' memory on the device is in it.
        self._others = _device_used(device)

    def start(self) -> None:
        """Make the context, measure it, and set the limit."""
        torch.cuda.set_device(self._device)
        torch.cuda.init()
        torch.cuda.synchronize(self._device)
        self._context = self._driver_bytes()
        total = torch.cuda.get_device_properties(self._device).total_memory
        if self._limit_bytes is not None:
            # A smaller card would have its context on it too.
            left = max(self._limit_bytes - (self._context or 0), 0)
            torch.cuda.set_per_process_memory_fraction(min(left / total, 1.0), self._device)
        torch.cuda.reset_peak_memory_stats(self._device)

    def lift(self) -> None:
        """Nothing to lift: what reports a failure takes no device memory."""

    def synchronise(self) -> None:
        """Wait for all kernels, and look at the driver's figure."""
        torch.cuda.synchronize(self._device)
        now = self._driver_bytes()
        if now is not None:
            self._in_use = max(now, self._in_use or 0)

    def num_retries(self) -> int:
        """Return how often the allocator has given cached memory back."""
        return int(torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0))

    def peaks(self) -> dict[str, Any]:
        """Return the peaks so far in bytes, None where nobody tells."""
        stats = torch.cuda.memory_stats(self._device)
        return {
            "allocated_peak_bytes": int(stats.get("allocated_bytes.all.peak", 0)),
            "reserved_peak_bytes": int(stats.get("reserved_bytes.all.peak", 0)),
            "in_use_peak_bytes": self._in_use,
            "context_bytes": self._context,
            "num_retries": self.num_retries(),
        }

    def about(self) -> dict[str, Any]:
        """Return the device's name and bytes."""
        properties = torch.cuda.get_device_properties(self._device)
        total = int(properties.total_memory)
        return {
            "device_name": properties.name,
            "total_bytes": min(total, self._limit_bytes or total),
        }

    def _driver_bytes(self) -> int | None:
        now = _device_used(self._device)
        return None if now is None or self._others is None else max(0, now - self._others)


def _device_used(device: torch.device) -> int | None:
    """Return the bytes in use on the device by everyone, without making a context."""
    try:
        import pynvml

        pynvml.nvmlInit()
        number = torch.cuda._get_nvml_device_index(device.index or 0)
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(number)).used)
    except Exception:  # no NVML (ROCm, a container without it): the figure is left out
        return None


class _Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of malloc.h (glibc 2.33)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


class CpuMeter:
    """Figures of glibc and the kernel for this process, above the baseline."""

    def __init__(self, limit_bytes: int | None, device: torch.device) -> None:
        self._limit_bytes = limit_bytes
        self._libc = ctypes.CDLL(None)
        self._was: tuple[int, int] | None = None

    def start(self) -> None:
        """Warm the libraries up, take the baseline, and set the limit above it."""
        # Stacks of the pool's threads and MKL's buffers are no tensors.
        torch.ones(1 << 8, 1 << 8) @ torch.ones(1 << 8, 1 << 8)
        self._data, self._mapped = _status("VmData"), self._mapped_bytes()
        self._resident = _status("VmRSS")
        if self._limit_bytes is not None:
            import resource

            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            self._was = (soft, hard)
            limit = self._data + self._limit_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))

    def lift(self) -> None:
        """Take the limit away, so that a failure can be told."""
        if self._was is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, self._was)

    def synchronise(self) -> None:
        """Nothing runs in the background."""

    def num_retries(self) -> int:
        """Return 0: there is no cache to give back."""
        return 0

    def peaks(self) -> dict[str, Any]:
        """Return the peaks so far in bytes above the baseline."""
        highest = self._highest_mapped()
        allocated, in_use = None, _status("VmHWM") - self._resident
        if highest is not None:
            allocated = max(0, highest - self._mapped)
            besides = _status("VmData") - self._data - (self._mapped_bytes() - self._mapped)
            in_use = allocated + max(0, besides)
        return {
            "allocated_peak_bytes": allocated,
            "reserved_peak_bytes": None,
            "in_use_peak_bytes": in_use,
            "context_bytes": 0,  # the baseline is outside the limit
            "num_retries": 0,
        }

    def about(self) -> dict[str, Any]:
        """Return the processor's name and the limit."""
        return {"device_name": _processor(), "total_bytes": self._limit_bytes}

    def _mapped_bytes(self) -> int:
        if not hasattr(self._libc, "mallinfo2"):
            return 0
        self._libc.mallinfo2.restype = _Mallinfo
        return int(self._libc.mallinfo2().hblkhd)

    def _highest_mapped(self) -> int | None:
        """Return glibc's count of the most bytes that mapped blocks had at once."""
        if not (hasattr(self._libc, "malloc_stats") and hasattr(self._libc, "mallinfo2")):
            return None  # musl, or an older glibc: the kernel's resident peak has to do
        sys.stderr.flush()
        kept = os.dup(2)
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                self._libc.malloc_stats()
                self._libc.fflush(None)
            finally:
                os.dup2(kept, 2)
                os.close(kept)
            file.seek(0)
            found = re.findall(rb"max mmap bytes\s*=\s*(\d+)", file.read())
        return int(found[-1]) if found else None


def _status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * KIB
    raise OSError(f"/proc/self/status has no {name}")


def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "CPU"
