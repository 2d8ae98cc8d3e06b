"""What a process needs on the device beside its tensors."""

from __future__ import annotations

from batchplan.spec import Cluster, Gpu
from batchplan.units import MIB

# aten/src/ATen/cuda/CublasHandlePool.cpp: 32 MiB on compute capability 9, 10 and 12, otherwise
# 8,519,680 bytes; one for the forward stream and one for autograd's thread.
CUBLAS_WORKSPACE_BYTES = {"9": 32 * MIB, "10": 32 * MIB, "12": 32 * MIB}
CUBLAS_WORKSPACE_DEFAULT_BYTES = 8_519_680
CUBLAS_HANDLES = 2

# Reserved above allocated, as a share of allocated. torch-preflight measures a mean of 10.5 %
# (6-12.5 %) on real models; six public A100-80GB rows of Mistral-7B give 4-15 %.
ALLOCATOR_RESERVE = 0.105
ALLOCATOR_RESERVE_SOURCE = "torch-preflight, mean of 6-12.5 % on real models"

# Outside torch's allocator once a communicator exists: 600 MiB (A100, NVLink, AgileRL), 1.5 GiB
# for the first two-GPU barrier (stas00/ml-engineering). Between the two.
COMMUNICATOR_BYTES = 1024 * MIB
COMMUNICATOR_SOURCE = "0.6-1.5 GiB observed (AgileRL, stas00/ml-engineering); 1 GiB taken"

ERROR_PERCENT = 10.0
ERROR_BASIS = (
    "not calibrated on this device; six public A100-80GB runs need 4-15 % above allocated "
    "where the bill takes 10.5 %"
)


def cublas_workspace_bytes(gpu: Gpu) -> int:
    """Return the bytes of cuBLAS workspaces, which come from torch's allocator."""
    major = gpu.compute_capability.split(".")[0]
    each = CUBLAS_WORKSPACE_BYTES.get(major, CUBLAS_WORKSPACE_DEFAULT_BYTES)
    return CUBLAS_HANDLES * each


def allocator_reserve_bytes(allocated_bytes: int) -> int:
    """Return what the caching allocator holds above the live tensors at the peak."""
    return round(ALLOCATOR_RESERVE * allocated_bytes)


def communicator_bytes(cluster: Cluster) -> int:
    """Return what NCCL takes outside torch's allocator."""
    return COMMUNICATOR_BYTES if cluster.num_ranks > 1 else 0
