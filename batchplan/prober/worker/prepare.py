"""The model on ``meta`` by the tracer's builder, and then on the device with real weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from batchplan.tracer.worker import build
from batchplan.tracer.worker.built import DTYPES, Built, WorkerError, one_line

from . import losses
from .libraries import need
from .quantised import is_packed, packed, use_bitsandbytes

INIT_STD = 0.02
"""Of random weights, transformers' usual ``initializer_range``."""


def prepare(request: dict[str, Any]) -> Built:
    """Return the model as the recipe has it, without storage.

    Raises:
        WorkerError: when a library that the recipe needs is not there, or the model refuses it.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if request["is_quantised"]:
        use_bitsandbytes(double_quant=request["double_quant"])
    built = build.build({**request, "loss": "standard"}, whole=True)
    if built.attention == "flash":
        need("flash_attn", what="--attention flash", package="flash-attn")
    losses.install(built, request["loss"])
    return built


def materialise(model: nn.Module, request: dict[str, Any], device: torch.device) -> None:
    """Give every parameter and buffer storage on ``device``, ties kept, values random."""
    made: dict[int, Any] = {}
    dtype = DTYPES[request["weight_dtype"]]

    def real(tensor: torch.Tensor, *, is_buffer: bool) -> Any:
        if id(tensor) not in made:
            made[id(tensor)] = _real(tensor, dtype, device, is_buffer=is_buffer)
        return made[id(tensor)]

    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = real(parameter, is_buffer=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = real(buffer, is_buffer=True)
            for name, value in list(vars(module).items()):
                # Some modules keep tensors as plain attributes (rotary "original_inv_freq").
                if isinstance(value, torch.Tensor) and value.device.type == "meta":
                    setattr(module, name, real(value, is_buffer=True))
    if request["loads_weights"]:
        load_weights(model, request)


def _real(tensor: Any, dtype: torch.dtype, device: torch.device, *, is_buffer: bool) -> Any:
    if is_packed(tensor):
        return packed(tensor, dtype, device)
    local = getattr(tensor, "_local_tensor", tensor)  # of a rank's share
    fresh = torch.empty(local.shape, dtype=tensor.dtype, device=device)
    if not fresh.is_floating_point():
        # Position numbers, and masks that hide nothing.
        fresh.fill_(tensor.dtype is torch.bool)
    elif tensor.ndim > 1:
        fresh.normal_(std=INIT_STD)
    else:
        fresh.fill_(1.0)  # normalisations, frequencies; a bias of one harms nobody
    if local is not tensor:
        fresh = type(tensor.data).from_local(
            fresh,
            tensor.device_mesh,
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )
    return fresh if is_buffer else nn.Parameter(fresh, requires_grad=tensor.requires_grad)


def load_weights(model: nn.Module, request: dict[str, Any]) -> None:
    """Copy the published weights into the model; adapters stay random.

    Raises:
        WorkerError: when they cannot be had, or are those of another model.
    """
    if request["is_quantised"]:
        raise WorkerError("--weights with QLoRA is not supported by the probe; leave it out.")
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    try:
        loaded = type(base).from_pretrained(
            request["model_ref"],
            dtype=DTYPES[request["weight_dtype"]],
            trust_remote_code=request["trust_remote_code"],
        )
    except Exception as error:
        raise WorkerError(f"The weights cannot be loaded: {one_line(error)}") from error
    ours = {name.replace(".base_layer.", "."): p for name, p in base.named_parameters()}
    with torch.no_grad():
        for name, parameter in loaded.named_parameters():
            if name in ours and ours[name].shape == parameter.shape:
                ours[name].copy_(parameter)
            else:
                raise WorkerError(f"The weights at {request['model_ref']} do not fit: {name}.")
