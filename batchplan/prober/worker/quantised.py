"""A 4-bit base by bitsandbytes, in place of the tracer's stand-in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from batchplan.tracer.worker import quantised, recipe

from .libraries import need


def use_bitsandbytes(*, double_quant: bool) -> None:
    """Have the tracer's recipe quantise with bitsandbytes' own modules.

    Raises:
        WorkerError: when bitsandbytes is not installed.
    """
    library = need("bitsandbytes.nn", what="QLoRA's 4-bit base", package="bitsandbytes")

    def quantise(model: nn.Module, compute_dtype: torch.dtype) -> None:
        head = model.get_output_embeddings()
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is not nn.Linear or child is head:
                    continue
                made = library.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=child.bias is not None,
                    compute_dtype=compute_dtype,
                    compress_statistics=double_quant,
                    quant_type="nf4",
                    device="meta",
                )
                if child.bias is not None:
                    made.bias = child.bias
                setattr(parent, name, made)
        model.is_loaded_in_4bit = True
        model.requires_grad_(False)

    # ``widen`` and ``set_dtypes`` look these up when they are called.
    for module, name, value in (
        (quantised, "Linear4bit", library.Linear4bit),
        (recipe, "quantise", quantise),
    ):
        setattr(module, name, value)


def is_packed(parameter: Any) -> bool:
    """Whether a parameter is to be held in 4 bits."""
    return type(parameter).__name__ == "Params4bit"


def packed(parameter: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Return random weights of the parameter's shape, quantised on the device."""
    values = torch.empty(parameter.shape, dtype=dtype).normal_(std=0.02)
    return type(parameter)(
        values,
        requires_grad=False,
        compress_statistics=parameter.compress_statistics,
        quant_type=parameter.quant_type,
        module=getattr(parameter, "module", None),
    ).to(device)
