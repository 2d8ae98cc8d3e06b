"""What the worker is asked: the parts of a recipe that change activations, and nothing else."""

from __future__ import annotations

from typing import Any

from batchplan.errors import SpecError
from batchplan.spec import Checkpointing, Dtype, Method, Recipe
from batchplan.states.numerics import resolve_dtypes

TRACEABLE = (Dtype.FP32, Dtype.BF16, Dtype.FP16)


def trace_request(
    *,
    config: dict[str, Any],
    model_ref: str,
    recipe: Recipe,
    seq_len: int,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Return the worker's request for ``recipe``; equal requests have equal profiles.

    Sharding, optimizer and accumulation are left out: they change no activation. QLoRA is traced
    as LoRA, since a 4-bit base keeps the same activations.

    Raises:
        SpecError: when the recipe cannot be traced.
    """
    if recipe.checkpointing is Checkpointing.SELECTIVE:
        raise SpecError(
            "Selective checkpointing is not modelled yet; use --checkpointing none or full."
        )
    dtypes = resolve_dtypes(recipe)
    weight = dtypes.weights if recipe.method is Method.FULL else dtypes.frozen
    if weight not in TRACEABLE:
        raise SpecError(
            f"Weights in {weight} cannot be trained; use --weight-dtype fp32, bf16 or fp16."
        )
    adapts = recipe.method is not Method.FULL
    return {
        "config": config,
        "model_ref": model_ref if trust_remote_code else "",
        "trust_remote_code": trust_remote_code,
        "seq_len": seq_len,
        "weight_dtype": weight.value,
        "autocast_dtype": dtypes.compute.value if dtypes.autocast else None,
        "attention": recipe.attention.value,
        "checkpointing": recipe.checkpointing.value,
        "method": "lora" if adapts else "full",
        "lora_rank": recipe.lora_rank if adapts else 0,
        "lora_targets": recipe.lora_targets if adapts else "",
        "lora_dropout": recipe.lora_dropout if adapts else 0.0,
        "adapter_dtype": dtypes.weights.value if adapts else "",
    }
