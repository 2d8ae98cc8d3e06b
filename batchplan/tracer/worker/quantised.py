"""A 4-bit base without a GPU: modules that look like bitsandbytes' to peft and allocate alike.

Weights keep their full shape here, because frozen weights count as no activation; the memory
arithmetic prices them as NF4.

Source: bitsandbytes nn/modules.py (Linear4bit), autograd/_functions.py (MatMul4Bit): the
dequantised weight is not kept; both products dequantise into a temporary. Nor is the input since
0.43.2; before, the graph itself held it, and so until the loss is gone (0.41.1 and 0.43.1).
"""

from __future__ import annotations

import functools
import re
import sys
from importlib import metadata
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .built import norm_parameters


class MatMul4Bit(torch.autograd.Function):
    """The product with a 4-bit weight."""

    @staticmethod
    def forward(ctx: Any, tokens: Any, weight: Any, bias: Any) -> Any:
        """Tokens (..., in) by weight (out, in)."""
        ctx.save_for_backward(weight)
        ctx.held = tokens if ctx.needs_input_grad[0] and _holds_inputs() else None
        return nn.functional.linear(tokens, _dequantised(weight, tokens.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradient of the tokens."""
        (weight,) = ctx.saved_tensors
        (grad,) = grads
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return torch.matmul(grad, _dequantised(weight, grad.dtype)), None, None


@functools.cache
def _holds_inputs() -> bool:
    """Whether the installed bitsandbytes is one that holds inputs; without one, the newest."""
    try:
        version = metadata.version("bitsandbytes")
    except metadata.PackageNotFoundError:
        return False
    return [int(number) for number in re.findall(r"\d+", version)[:3]] < [0, 43, 2]


def _dequantised(weight: Any, dtype: torch.dtype) -> Any:
    return torch.empty_like(weight).to(dtype)


class Linear4bit(nn.Linear):
    """A frozen linear layer in 4 bits."""

    compute_dtype: Any
    _is_compute_dtype_set = False

    def forward(self, tokens: Any) -> Any:
        """Compute in the dtype of the first tokens seen, as bitsandbytes does for fp32 and bf16."""
        if not self._is_compute_dtype_set:
            if tokens.dtype in (torch.float32, torch.bfloat16):
                self.compute_dtype = tokens.dtype
            self._is_compute_dtype_set = True
        cast = tokens.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return MatMul4Bit.apply(cast, self.weight, bias).to(tokens.dtype)


def pretend_bitsandbytes() -> None:
    """Let peft find the stand-in under bitsandbytes' name; before peft is imported."""
    package, modules = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.nn")
    package.__spec__ = ModuleSpec("bitsandbytes", None)
    package.__version__ = "0"  # type: ignore[attr-defined]
    modules.Linear4bit = Linear4bit  # type: ignore[attr-defined]
    modules.Params4bit = nn.Parameter  # type: ignore[attr-defined]
    modules.Linear8bitLt = type("Linear8bitLt", (nn.Linear,), {})  # type: ignore[attr-defined]
    package.nn = modules  # type: ignore[attr-defined]
    sys.modules["bitsandbytes"], sys.modules["bitsandbytes.nn"] = package, modules


def quantise(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Make every linear layer but the head a 4-bit one.

    Source: transformers integrations/bitsandbytes.py, replace_with_bnb_linear and
    get_keys_to_not_convert (the output embedding stays).
    """
    pretend_bitsandbytes()
    head = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is nn.Linear and module is not head:
            module.__class__ = Linear4bit
            module.compute_dtype = compute_dtype
            # What peft reads when it wraps the layer.
            module.weight.compress_statistics = True
            module.weight.quant_type = "nf4"
    model.is_loaded_in_4bit = True
    model.requires_grad_(False)


def widen(model: nn.Module, *, frozen: bool, norm_dtype: Any) -> None:
    """Cast what stays 16-bit: all of it to fp32, or the normalisations to ``norm_dtype``.

    Source: peft utils/other.py, prepare_model_for_kbit_training.
    """
    norms = norm_parameters(model)
    quantised = {id(module.weight) for module in model.modules() if isinstance(module, Linear4bit)}
    for parameter in model.parameters():
        if frozen and id(parameter) not in quantised:
            parameter.data = parameter.data.to(torch.float32)
        if norm_dtype is not None and id(parameter) in norms:
            parameter.data = parameter.data.to(norm_dtype)


def packed_bytes(model: nn.Module, *, double_quant: bool) -> dict[int, list[int]]:
    """Return, by identity of a 4-bit weight, the bytes of the tensors that hold it.

    Packed values, then scales: fp32 per block of 64, or 8-bit with fp32 per 256 of those.
    Source: bitsandbytes functional.py, quantize_4bit.
    """
    found: dict[int, list[int]] = {}
    for module in model.modules():
        if isinstance(module, Linear4bit):
            values = module.weight.numel()
            blocks = -(-values // 64)
            scales = [blocks, 4 * -(-blocks // 256)] if double_quant else [4 * blocks]
            found[id(module.weight)] = [-(-values // 2), *scales]
    return found
