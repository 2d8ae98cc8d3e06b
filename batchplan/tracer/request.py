"""What the worker is asked: the parts of a recipe that change activations, and nothing else."""

from __future__ import annotations

from typing import Any

from batchplan.errors import SpecError
from batchplan.spec import (
    Batch,
    Checkpointing,
    Dtype,
    Method,
    Offload,
    Optimizer,
    Recipe,
    Sharding,
)
from batchplan.states.numerics import resolve_dtypes

TRACEABLE = (Dtype.FP32, Dtype.BF16, Dtype.FP16)


def trace_request(
    *,
    config: dict[str, Any],
    model_ref: str,
    recipe: Recipe,
    seq_len: int,
    trust_remote_code: bool = False,
    library: str = "transformers",
) -> dict[str, Any]:
    """Return the worker's request for ``recipe``; equal requests have equal profiles.

    Sharding, optimizer and accumulation are left out: they change no activation.

    Raises:
        SpecError: when the recipe cannot be traced.
    """
    dtypes = resolve_dtypes(recipe)
    weight = dtypes.weights if recipe.method is Method.FULL else dtypes.frozen
    if weight not in TRACEABLE:
        raise SpecError(
            f"Weights in {weight} cannot be trained; use --weight-dtype fp32, bf16 or fp16."
        )
    quantises = recipe.method is Method.QLORA
    adapts = recipe.method is not Method.FULL
    return {
        "library": library,
        "config": config,
        "model_ref": model_ref if trust_remote_code else "",
        "trust_remote_code": trust_remote_code,
        "seq_len": seq_len,
        "weight_dtype": weight.value,
        "autocast_dtype": dtypes.compute.value if dtypes.autocast else None,
        "attention": recipe.attention.value,
        "checkpointing": recipe.checkpointing.value,
        "reentrant": recipe.reentrant and recipe.checkpointing is not Checkpointing.NONE,
        "loss": recipe.loss.value,
        "norm_dtype": recipe.norm_dtype.value if recipe.norm_dtype is not None else None,
        "method": "lora" if adapts else "full",
        "is_quantised": quantises,
        "frozen_upcast": recipe.frozen_upcast and quantises,
        "lora_rank": recipe.lora_rank if adapts else 0,
        "lora_targets": recipe.lora_targets if adapts else "",
        "lora_dropout": recipe.lora_dropout if adapts else 0.0,
        "adapter_dtype": dtypes.weights.value if adapts else "",
        # accelerate does it around an autocast forward, LitGPT's Fabric around any.
        "fp32_outputs": recipe.fp32_outputs and (dtypes.autocast or library == "litgpt"),
    }


def profile_key(recipe: Recipe, seq_len: int, library: str) -> tuple[object, ...]:
    """Return what tells the profiles of one model apart: equal keys have equal profiles."""
    request = trace_request(
        config={}, model_ref="", recipe=recipe, seq_len=seq_len, library=library
    )
    return tuple(value for name, value in request.items() if name != "config")


RECORDED = (Optimizer.ADAMW, Optimizer.SGD, Optimizer.SGD_MOMENTUM)
"""Optimizers of torch's own; the others run kernels that need a GPU."""


def recording_request(
    *,
    config: dict[str, Any],
    model_ref: str,
    recipe: Recipe,
    batch: Batch,
    trust_remote_code: bool = False,
    library: str = "transformers",
) -> dict[str, Any]:
    """Return the worker's request for a recording of whole steps.

    Raises:
        SpecError: when the recipe cannot be recorded; the bill of ``estimate`` still can.
    """
    request = trace_request(
        config=config,
        model_ref=model_ref,
        recipe=recipe,
        seq_len=batch.seq_len,
        trust_remote_code=trust_remote_code,
        library=library,
    )
    dtypes = resolve_dtypes(recipe)
    for is_true, what in (
        (recipe.optimizer not in RECORDED, f"--optimizer {recipe.optimizer}"),
        (recipe.offload is not Offload.NONE, f"--offload {recipe.offload}"),
        (recipe.sharding is not Sharding.DDP, f"--sharding {recipe.sharding}"),
        (batch.num_ranks > 1, f"--devices {batch.num_ranks}"),
        (dtypes.has_master, f"--numerics {recipe.numerics} on one device"),
        (dtypes.gradients is not dtypes.weights, "--grad-dtype"),
        (dtypes.optimizer is not dtypes.weights, "--optimizer-dtype"),
    ):
        if is_true:
            raise SpecError(f"{what} cannot be recorded yet; estimate prices it.")
    return request | {
        "micro_batch": batch.micro_batch,
        "accum_steps": min(batch.accum_steps, 2),
        "optimizer": recipe.optimizer.value,
        "optimizer_impl": recipe.optimizer_impl.value,
        "double_quant": recipe.double_quant,
    }
