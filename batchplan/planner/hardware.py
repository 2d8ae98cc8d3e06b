"""What a device cannot run: attention kernels by compute capability."""

from __future__ import annotations

from batchplan.errors import SpecError
from batchplan.spec import Attention, Gpu, Recipe

FLASH_COMPUTE_CAPABILITY = 8
"""FlashAttention-2 needs Ampere or later; Volta and Turing run SDPA's memory-efficient kernel.

Source: flash-attn README, "NVIDIA CUDA Support": Ampere, Ada, or Hopper GPUs."""


def supported_attentions(gpu: Gpu) -> tuple[Attention, ...]:
    """Return the attention implementations that run on ``gpu``; all where little is known of it.

    >>> t4 = Gpu(name="T4", usable_bytes=1, compute_capability="7.5")
    >>> [attention.value for attention in supported_attentions(t4)]
    ['eager', 'sdpa']
    """
    major = gpu.compute_capability.partition(".")[0]
    if major.isdigit() and int(major) < FLASH_COMPUTE_CAPABILITY:
        return (Attention.EAGER, Attention.SDPA)
    return tuple(Attention)


def check_attention(recipe: Recipe, gpu: Gpu) -> None:
    """Refuse an attention implementation that the device cannot run.

    Raises:
        SpecError: naming what it can.
    """
    found = supported_attentions(gpu)
    if recipe.attention not in found:
        raise SpecError(
            f"--attention {recipe.attention} does not run on {gpu.name} (compute capability "
            f"{gpu.compute_capability}, {FLASH_COMPUTE_CAPABILITY}.0 is needed). Use "
            f"{' or '.join(reversed(found))}."
        )
