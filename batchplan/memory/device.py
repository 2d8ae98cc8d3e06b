"""What a process needs on the device beside its tensors."""

from __future__ import annotations

from batchplan.memory.terms import ErrorBand
from batchplan.spec import Cluster, Gpu
from batchplan.units import MIB

# aten/src/ATen/cuda/CublasHandlePool.cpp: 32 MiB on compute capability 9, 10 and 12, otherwise
# 8,519,680 bytes; one for the forward stream and one for autograd's thread. A device that is not
# CUDA's ("none") has none.
CUBLAS_WORKSPACE_BYTES = {"9": 32 * MIB, "10": 32 * MIB, "12": 32 * MIB, "none": 0}
CUBLAS_WORKSPACE_DEFAULT_BYTES = 8_519_680
CUBLAS_HANDLES = 2

# Reserved above allocated where no script can be played: torch-preflight measures a mean of
# 10.5 % (6-12.5 %) on real models.
ALLOCATOR_RESERVE = 0.105
ALLOCATOR_RESERVE_SOURCE = "torch-preflight, mean of 6-12.5 % on real models"
# What the driver shows beyond segments and a bare context: kernels of cuBLAS, FlashAttention and
# bitsandbytes, loaded when first used. Median of nvidia-smi less the played segments and the
# context over seven public runs on one A100-80GB (fms-acceleration, torch 2.4.1): 0.97 GiB,
# 0.74-1.86.
LIBRARIES_BYTES = 1024 * MIB
LIBRARIES_SOURCE = "median over 7 public A100-80GB runs (fms-acceleration), 0.74-1.86 GiB"

# Outside torch's allocator once a communicator exists: 600 MiB (A100, NVLink, AgileRL), 1.5 GiB
# for the first two-GPU barrier (stas00/ml-engineering). Between the two.
COMMUNICATOR_BYTES = 1024 * MIB
COMMUNICATOR_SOURCE = "0.6-1.5 GiB observed (AgileRL, stas00/ml-engineering); 1 GiB taken"

ALLOCATED_ERROR = ErrorBand(
    percent=1.0,
    basis="within 0.01 % on 8 public runs with the same library versions, else up to 10 %",
)
SHARDED_ALLOCATED_ERROR = ErrorBand(
    percent=4.0,
    basis="0 to -0.6 % on 6 public FSDP runs of HF Trainer, -4 to +3 % on most of LitGPT's",
)
RESERVED_ERROR = ErrorBand(
    percent=3.0,
    basis="the allocator's rules, played: within 3 % of playing every op, mostly 0.2 %",
)
IN_USE_ERROR = ErrorBand(
    percent=5.0,
    basis="overheads beyond segments calibrated on 7 public A100-80GB runs",
)
SHARDED_IN_USE_ERROR = ErrorBand(
    percent=13.0,
    basis="-13 to +8 % on 6 public runs under FSDP 1 on two A100, whose streams share no memory",
)
UNPLAYED_ERROR = ErrorBand(
    percent=10.0,
    basis="no allocator was played; real models need 6-12.5 % above allocated, 10.5 % is taken",
)


def cublas_workspace_bytes(gpu: Gpu) -> int:
    """Return the bytes of cuBLAS workspaces, which come from torch's allocator."""
    major = gpu.compute_capability.split(".")[0]
    each = CUBLAS_WORKSPACE_BYTES.get(major, CUBLAS_WORKSPACE_DEFAULT_BYTES)
    return CUBLAS_HANDLES * each


def libraries_bytes(gpu: Gpu) -> int:
    """Return what loaded kernels take: as measured on the device, else as on others.

    A bare memory size says nothing about a device.
    """
    if gpu.libraries_bytes is not None:
        return gpu.libraries_bytes
    return LIBRARIES_BYTES if gpu.context_bytes else 0


def libraries_source(gpu: Gpu) -> str:
    """Return where ``libraries_bytes`` is from."""
    return LIBRARIES_SOURCE if gpu.libraries_bytes is None else gpu.overhead_source


def in_use_error(gpu: Gpu) -> ErrorBand:
    """Return how far off what the driver shows may be where nothing is sharded."""
    if gpu.in_use_error_percent is None:
        return IN_USE_ERROR
    return ErrorBand(
        percent=gpu.in_use_error_percent,
        basis=f"overheads {gpu.overhead_source}, n = {gpu.num_measurements}",
    )


def least_in_use_error(gpu: Gpu) -> ErrorBand:
    """Return the smallest error that any run on the device can have."""
    return min(IN_USE_ERROR, in_use_error(gpu), key=lambda band: band.percent)


def communicator_bytes(cluster: Cluster) -> int:
    """Return what NCCL takes outside torch's allocator."""
    return COMMUNICATOR_BYTES if cluster.num_ranks > 1 else 0


def overhead_bytes(gpu: Gpu, cluster: Cluster) -> int:
    """Return what the device holds beside segments."""
    return gpu.context_bytes + libraries_bytes(gpu) + communicator_bytes(cluster)
