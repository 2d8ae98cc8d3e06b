"""The recipe on the module: dtypes, quantisation, adapters, checkpointing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .built import DTYPES, RequestError, Stack, WorkerError, one_line
from .quantised import quantise, widen


def set_dtypes(model: nn.Module, request: dict[str, Any]) -> None:
    """Quantise the base and cast what the recipe holds in another dtype."""
    norm_dtype = DTYPES.get(request["norm_dtype"])
    if request["is_quantised"]:
        compute = DTYPES[request["autocast_dtype"] or request["weight_dtype"]]
        quantise(model, compute)
    if request["is_quantised"] or norm_dtype is not None:
        widen(model, frozen=request["frozen_upcast"], norm_dtype=norm_dtype)


def add_adapters(model: nn.Module, request: dict[str, Any], device: str = "meta") -> nn.Module:
    """Return the model wrapped by peft, its adapters on ``device`` and in their dtype."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise WorkerError(
            "LoRA is traced with peft, which this environment does not have: pip install peft."
        ) from error
    targets = request["lora_targets"]
    if type(model).__name__.endswith("ForMaskedLM"):
        task = None
    elif getattr(model.config, "is_encoder_decoder", False):
        task = "SEQ_2_SEQ_LM"
    else:
        task = "CAUSAL_LM"
    config = LoraConfig(
        r=request["lora_rank"],
        lora_alpha=2 * request["lora_rank"],
        lora_dropout=request["lora_dropout"],
        target_modules=targets if targets == "all-linear" else targets.split(","),
        task_type=task,
    )
    try:
        with torch.device(device):
            adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise RequestError(f"peft refuses these LoRA targets: {one_line(error)}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(DTYPES[request["adapter_dtype"]])
    return adapted


def enable_checkpointing(model: nn.Module, request: dict[str, Any], notes: list[str]) -> None:
    """Switch activation checkpointing on, or note that the model has none."""
    options = {"use_reentrant": request["reentrant"], "preserve_rng_state": False}
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        if request["reentrant"] and request["method"] != "full":
            # A reentrant checkpoint without a differentiable input has no backward.
            model.enable_input_require_grads()
    except (ValueError, AttributeError):
        notes.append(
            f"{type(model).__name__} does not support activation checkpointing; traced without."
        )


CHECKPOINT_EVERY = 2
"""``selective``: every second layer is checkpointed (transformers' ``every_n_layers``)."""


def checkpoint_some(stacks: list[Stack]) -> None:
    """Take the checkpoint away from the layers that selective checkpointing leaves alone.

    Source: transformers modeling_utils.py, _set_gradient_checkpointing (5.23).
    """
    for stack in stacks:
        for layer, position in zip(stack.module, stack.kept):
            if not hasattr(layer, "gradient_checkpointing"):
                raise WorkerError(
                    f"{type(layer).__name__} cannot be checkpointed one by one; "
                    "use --checkpointing none or full."
                )
            if position % CHECKPOINT_EVERY:
                layer.gradient_checkpointing = False
