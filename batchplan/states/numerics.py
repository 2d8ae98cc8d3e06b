"""Which dtype each state has: the named numerics, with every field of the recipe on top."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.spec import Dtype, Method, Numerics, Recipe, Sharding

BYTES_PER_ELEMENT = {Dtype.FP32: 4, Dtype.BF16: 2, Dtype.FP16: 2, Dtype.INT8: 1}
"""Whole bytes per element; NF4 is less than one: see ``nf4_bytes``."""

# 4 bits a value and one fp32 scale a block of 64; double quantisation holds the scales in 8 bits
# with an fp32 scale per 256 of them. Source: QLoRA, arXiv 2305.14314, section 3.
NF4_BYTES = 0.5 + 4 / 64
NF4_DOUBLE_QUANT_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dtypes:
    """The dtype of each state, resolved."""

    weights: Dtype
    """Trainable weights as the forward pass finds them."""
    frozen: Dtype
    """Frozen weights that are not quantised."""
    gradients: Dtype
    optimizer: Dtype
    compute: Dtype
    """What matrix products run in, under autocast or not."""
    has_master: bool
    """Whether fp32 copies of the trainable weights exist beside them."""
    autocast: bool


_NAMED = {
    # name: (weights, gradients, optimizer, compute, master copies, autocast)
    Numerics.FP32: (Dtype.FP32, Dtype.FP32, Dtype.FP32, Dtype.FP32, False, False),
    Numerics.BF16: (Dtype.BF16, Dtype.BF16, Dtype.BF16, Dtype.BF16, False, False),
    Numerics.FP16: (Dtype.FP16, Dtype.FP16, Dtype.FP16, Dtype.FP16, False, False),
    Numerics.BF16_AUTOCAST: (Dtype.FP32, Dtype.FP32, Dtype.FP32, Dtype.BF16, False, True),
    Numerics.FP16_AUTOCAST: (Dtype.FP32, Dtype.FP32, Dtype.FP32, Dtype.FP16, False, True),
    Numerics.BF16_MASTER: (Dtype.BF16, Dtype.BF16, Dtype.FP32, Dtype.BF16, True, False),
    Numerics.FP16_MASTER: (Dtype.FP16, Dtype.FP16, Dtype.FP32, Dtype.FP16, True, False),
}


_DEEPSPEED = (Sharding.ZERO1, Sharding.ZERO2, Sharding.ZERO3)


def resolve_dtypes(recipe: Recipe) -> Dtypes:
    """Return the dtype of each state of ``recipe``.

    LoRA and QLoRA train adapters only. peft keeps those in fp32 (``autocast_adapter_dtype``), so
    they need no master copy and their gradients and moments are fp32, whatever the base is in.
    DeepSpeed's 16-bit training casts every weight, adapters too, and keeps fp32 masters of them.
    Sources: peft ``tuners_utils.cast_adapter_dtype``; deepspeed ``engine.py``,
    ``_cast_module_mixed_precision``.
    """
    weights, gradients, optimizer, compute, has_master, autocast = _NAMED[recipe.numerics]
    frozen = recipe.weight_dtype or weights
    if recipe.method is Method.FULL:
        weights = frozen
    elif not (has_master and recipe.sharding in _DEEPSPEED):
        weights = gradients = optimizer = recipe.adapter_dtype or Dtype.FP32
        has_master = False
    return Dtypes(
        weights=weights,
        frozen=frozen,
        gradients=recipe.grad_dtype or gradients,
        optimizer=recipe.optimizer_dtype or optimizer,
        compute=compute,
        has_master=has_master if recipe.master_weights is None else recipe.master_weights,
        autocast=autocast,
    )


def nf4_bytes(recipe: Recipe) -> float:
    """Return bytes per parameter of a 4-bit base, its scales included."""
    return NF4_DOUBLE_QUANT_BYTES if recipe.double_quant else NF4_BYTES
