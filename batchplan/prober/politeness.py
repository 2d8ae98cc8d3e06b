"""What a device has free, who else is on it, and how much of it a probe may take."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from batchplan.errors import ProbeError, SpecError
from batchplan.prober.trial import Device
from batchplan.sources.gpus import gpu_of_size
from batchplan.sources.local_amd import AmdCard, amd_cards
from batchplan.sources.local_gpu import read_gpu, visible_gpus
from batchplan.spec import Gpu
from batchplan.units import GIB, format_bytes

DISPLAY_RESERVE_BYTES = GIB
"""Left free where a display hangs on the GPU: a choice, room for a browser and a video to grow."""
SHARED_RESERVE_SHARE = 0.05
"""Of the device, left free where other processes compute: a choice, as their need may grow."""
IDLE_BYTES = GIB
"""Taken of an idle GPU at most: the driver keeps 0.25 to 0.85 GiB for itself."""
MOST = 0.5
"""A device of which others hold more than this share is left alone, unless a limit is given."""


class Advice(NamedTuple):
    """What to try where a command finds no GPU."""

    no_gpu: str
    too_few: str
    """With a place for the number that was asked for."""


PROBE_ADVICE = Advice(
    no_gpu="--device cpu --memory-limit 2GiB trains on the CPU, or let `batchplan estimate` answer "
    "for a GPU that is not here.",
    too_few="--as-rank-of {} finds the micro-batch of one rank on one GPU.",
)
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """Another process that computes on the device."""

    pid: int
    num_bytes: int | None
    """None where the driver does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A device as it is now; of several, the one with the least free."""

    device: Device
    gpu: Gpu
    """As the estimate prices it when all of it is free."""
    total_bytes: int | None
    """None where only a process that uses the device could tell."""
    free_bytes: int | None
    processes: tuple[Process, ...] = ()
    drives_display: bool = False
    driver: str = ""
    """Its version, where it has one that tells."""

    @property
    def reserve_bytes(self) -> int:
        """What a probe leaves free for others."""
        display = DISPLAY_RESERVE_BYTES if self.drives_display else 0
        is_shared = bool(self.processes) or self.device is not Device.CUDA
        share = SHARED_RESERVE_SHARE * (self.total_bytes or 0) if is_shared else 0
        return max(display, int(share))

    @property
    def is_ours(self) -> bool:
        """Whether nobody else needs anything of it."""
        is_idle = not (self.processes or self.reserve_bytes) and self.taken_bytes <= IDLE_BYTES
        return self.device is Device.CUDA and is_idle

    @property
    def taken_bytes(self) -> int:
        """What others hold of it."""
        if self.total_bytes is None or self.free_bytes is None:
            return 0
        return max(0, self.total_bytes - self.free_bytes)


def look(
    device: Device,
    *,
    num_devices: int = 1,
    nvml: Any = None,
    visible_devices: str | None = None,
    meminfo: Path = _MEMINFO,
    advice: Advice = PROBE_ADVICE,
) -> State:
    """Return what is free on a device and who is on it; nothing on it is touched.

    CUDA's is asked of the driver, through NVML or amdgpu's files, which make no context. A CPU's
    is the host's available memory (limits of a container are not read). MPS tells only a process
    that uses it.

    Args:
        device: which kind.
        num_devices: how many of the visible GPUs will train.
        nvml: the ``pynvml`` module; None imports it.
        visible_devices: value of ``CUDA_VISIBLE_DEVICES``; None reads the environment.
        meminfo: the kernel's account of the host's memory.
        advice: what to try when there is none.

    Raises:
        ProbeError: when there is no such device, or there are not enough of them.
    """
    if device is Device.CUDA:
        states = _cuda_states(nvml, visible_devices, advice.no_gpu)
        if len(states) < num_devices:
            raise ProbeError(
                f"--devices {num_devices}: this machine shows {len(states)}. "
                f"{advice.too_few.format(num_devices)}"
            )
        return min(states[:num_devices], key=lambda state: state.free_bytes or 0)
    total, available = _host_memory(meminfo) if device is Device.CPU else (None, None)
    return State(
        device=device,
        gpu=without_cuda(device, total or GIB),
        total_bytes=total,
        free_bytes=available,
    )


def without_cuda(device: Device, usable_bytes: int) -> Gpu:
    """Return a device that holds tensors alone: no context, no cuBLAS workspace, no libraries."""
    return Gpu(
        name=device.value.upper(),
        usable_bytes=usable_bytes,
        compute_capability="none",
        source="memory: as limited",
    )


def room(state: State, memory_limit_bytes: int | None) -> int:
    """Return the bytes that a probe may take, the reserve left free.

    Raises:
        SpecError: when a device whose memory is not its own has no limit.
        ProbeError: when others hold most of the device and no limit was given, or when so much is
            not free.
    """
    if memory_limit_bytes is None:
        _refuse_without_limit(state)
    if state.free_bytes is None and memory_limit_bytes is not None:
        return memory_limit_bytes
    free = min(state.free_bytes or 0, state.gpu.usable_bytes)
    allowed = max(0, free - state.reserve_bytes)
    wanted = allowed if memory_limit_bytes is None else memory_limit_bytes
    if not 0 < wanted <= allowed:
        asked = "" if memory_limit_bytes is None else f"--memory-limit {format_bytes(wanted)}: "
        reserve = state.reserve_bytes
        of_which = f", {format_bytes(reserve)} of which stay free for others" if reserve else ""
        raise ProbeError(
            f"{asked}{state.gpu.name} has {format_bytes(free)} free{of_which}, so a probe may take "
            f"{format_bytes(allowed)}. {_try(state)}"
        )
    return wanted


def _refuse_without_limit(state: State) -> None:
    if state.device is not Device.CUDA:
        raise SpecError(
            f"--device {state.device} needs --memory-limit SIZE, such as 2GiB: its memory is the "
            "host's, which others use."
        )
    total = state.total_bytes or 0
    if state.taken_bytes > MOST * total:
        raise ProbeError(
            f"{state.gpu.name} is in use: {format_bytes(state.taken_bytes)} of "
            f"{format_bytes(total)} are taken by {_who(state)}. {_try(state)}"
        )


def _who(state: State) -> str:
    if not state.processes:
        return "processes that the driver does not show"
    largest = max(state.processes, key=lambda each: each.num_bytes or 0)
    held = "" if largest.num_bytes is None else f" with {format_bytes(largest.num_bytes)}"
    others = len(state.processes) - 1
    return f"process {largest.pid}{held}" + (f" and {others} more" if others else "")


def _try(state: State) -> str:
    if state.device is not Device.CUDA:
        return "Give a smaller --memory-limit."
    return (
        "Wait for it, choose another device with CUDA_VISIBLE_DEVICES, or say with --memory-limit "
        "how much may be taken."
    )


def _cuda_states(nvml: Any, visible_devices: str | None, advice: str) -> list[State]:
    """Return what torch calls ``cuda``: NVIDIA's, and AMD's where there is none of NVIDIA's."""
    try:
        with visible_gpus(nvml, visible_devices, advice=advice) as (driver, handles):
            return [_cuda_state(driver, handle) for handle in handles]
    except ProbeError:
        states = [_amd_state(card) for card in amd_cards()]
        if not states:
            raise
        return states


def _amd_state(card: AmdCard) -> State:
    """Return an AMD card as torch's ``cuda``; who holds its memory is not asked."""
    return State(
        device=Device.CUDA,
        gpu=gpu_of_size(card.total_bytes, name=card.name),
        total_bytes=card.total_bytes,
        free_bytes=card.total_bytes - card.used_bytes,
        drives_display=card.drives_display,
    )


def _cuda_state(nvml: Any, handle: Any) -> State:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return State(
        device=Device.CUDA,
        gpu=read_gpu(nvml, handle),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        processes=_processes(nvml, handle),
        drives_display=_drives_display(nvml, handle),
        driver=_driver(nvml),
    )


def _driver(nvml: Any) -> str:
    try:
        found = nvml.nvmlSystemGetDriverVersion()
    except nvml.NVMLError:
        return ""
    return found.decode() if isinstance(found, bytes) else str(found)


def _processes(nvml: Any, handle: Any) -> tuple[Process, ...]:
    try:
        found = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return ()  # a MIG slice, or a container that may not ask: what is free still counts
    return tuple(
        Process(pid=int(each.pid), num_bytes=_optional(each.usedGpuMemory)) for each in found
    )


def _drives_display(nvml: Any, handle: Any) -> bool:
    """Whether a display is attached, or a desktop holds memory without one (headless X)."""
    for ask in (nvml.nvmlDeviceGetDisplayMode, nvml.nvmlDeviceGetDisplayActive):
        with suppress(nvml.NVMLError):  # devices without any output do not support the question
            if ask(handle):
                return True
    return False


def _host_memory(meminfo: Path) -> tuple[int | None, int | None]:
    """Return the host's memory and what programs can still have of it (Linux alone tells)."""
    try:
        lines = meminfo.read_text(encoding="ascii")
    except OSError:
        return None, None
    found = {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+): +(\d+) kB", lines)}
    return found.get("MemTotal"), found.get("MemAvailable")


def _optional(value: Any) -> int | None:
    return None if value is None else int(value)
