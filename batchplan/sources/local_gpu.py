"""The GPU of this machine, asked of the NVIDIA driver through NVML; torch is not needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from batchplan.errors import ProbeError
from batchplan.sources.gpus import GpuRow, gpu_of_size, match_row, usable_from_driver_total
from batchplan.spec import Gpu
from batchplan.units import format_bytes

_ADVICE = (
    "Name the device instead, such as --gpu a100-80gb, or give its memory, such as --gpu 24GiB."
)


def local_gpu(nvml: Any = None, visible_devices: str | None = None) -> Gpu:
    """Return the local GPU: memory as its driver reports it, rates as the catalog has them.

    Of several visible GPUs it is the one with the least memory, because a plan has to fit on each.

    Args:
        nvml: the ``pynvml`` module; None imports it.
        visible_devices: value of ``CUDA_VISIBLE_DEVICES``; None reads the environment.

    Raises:
        ProbeError: when there is no NVIDIA driver, or no GPU that may be used.
    """
    with visible_gpus(nvml, visible_devices) as (driver, handles):
        return min((read_gpu(driver, each) for each in handles), key=lambda gpu: gpu.usable_bytes)


@contextmanager
def visible_gpus(
    nvml: Any = None, visible_devices: str | None = None, *, advice: str = _ADVICE
) -> Iterator[tuple[Any, list[Any]]]:
    """Open the driver's library; give it and handles of the GPUs that CUDA would show.

    Args:
        nvml: as ``local_gpu``.
        visible_devices: as ``local_gpu``.
        advice: what to try when there is none.

    Raises:
        ProbeError: as ``local_gpu``, also for what fails while it is open.
    """
    if nvml is None:
        nvml = _pynvml(advice)
    if visible_devices is None:
        visible_devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise ProbeError(f"No NVIDIA driver answers on this machine ({error}). {advice}") from error
    try:
        handles = _handles(nvml, visible_devices, advice)
        if not handles:
            raise ProbeError(f"The NVIDIA driver shows no GPU. {advice}")
        yield nvml, handles
    except nvml.NVMLError as error:
        raise ProbeError(f"The NVIDIA driver could not be asked ({error}). {advice}") from error
    finally:
        nvml.nvmlShutdown()


def _pynvml(advice: str) -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise ProbeError(
            f"The package nvidia-ml-py, which asks the driver, is not installed. {advice}"
        ) from error
    return pynvml


def _handles(nvml: Any, visible_devices: str | None, advice: str) -> list[Any]:
    """Return handles of the devices that CUDA would show, in the driver's order.

    NVML itself ignores ``CUDA_VISIBLE_DEVICES``. As in CUDA, the first invalid entry ends the list.
    """
    count = nvml.nvmlDeviceGetCount()
    if visible_devices is None:
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    handles = []
    for entry in (part.strip() for part in visible_devices.split(",")):
        if entry.startswith(("GPU-", "MIG-")):
            handles.append(nvml.nvmlDeviceGetHandleByUUID(entry))
        elif entry.isdecimal() and int(entry) < count:
            handles.append(nvml.nvmlDeviceGetHandleByIndex(int(entry)))
        else:
            break
    if count and not handles:
        raise ProbeError(
            f"CUDA_VISIBLE_DEVICES={visible_devices!r} hides every one of the {count} GPUs. "
            f"Change it, or: {advice[0].lower()}{advice[1:]}"
        )
    return handles


def read_gpu(nvml: Any, handle: Any) -> Gpu:
    """Return one device: memory as its driver reports it, rates as the catalog has them."""
    raw = nvml.nvmlDeviceGetName(handle)
    name = raw.decode() if isinstance(raw, bytes) else str(raw)
    usable, how = _usable_bytes(nvml, handle)
    row = match_row(name)
    if row is None or row.usable_bytes is None:
        gpu = gpu_of_size(usable, name=name)
        known = "the catalog has no row for it"
    else:
        usable, how = _no_more_than_torch_reports(row, usable, how)
        gpu = row.to_gpu()
        known = f"the rest is the catalog's {row.alias}: {gpu.source}"
    source = f"memory: {format_bytes(usable)}, {how}; {known}"
    return gpu.model_copy(update={"name": name, "usable_bytes": usable, "source": source})


def _usable_bytes(nvml: Any, handle: Any) -> tuple[int, str]:
    """Return what torch will report as total memory, and how we know it."""
    version = getattr(nvml, "nvmlMemory_v2", None)
    if version is not None:
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=version)
        except nvml.NVMLError:
            pass  # a driver from before 2021 knows only the first version
        else:
            return int(memory.total - memory.reserved), "the driver's total less its own reserve"
    total = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return usable_from_driver_total(total), "the driver's total less 0.9 GiB"


def _no_more_than_torch_reports(row: GpuRow, usable: int, how: str) -> tuple[int, str]:
    """Cut a driver's figure to the most that torch was ever seen to report for this model.

    A MIG slice, a 12 GB variant or a card with ECC on has less, or much more, than its model's
    row: then the driver is believed.
    """
    if row.torch_total_gib_max is None or row.smi_mib is None:
        return usable, how
    most = int(row.torch_total_gib_max * 2**30)
    if most < usable <= row.smi_mib * 2**20:
        return most, f"{how}, cut to the most torch reports for a {row.name}"
    return usable, how
