"""From ``meta`` to fake tensors, and what transformers asks of tensors that fakes cannot answer."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn


def to_fake(model: nn.Module) -> list[torch.Tensor]:
    """Give every parameter and buffer fake CPU storage, keeping ties; return all of them."""
    replaced: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in replaced:
                fresh = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                replaced[id(parameter)] = nn.Parameter(fresh, parameter.requires_grad)
            module._parameters[name] = replaced[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                if id(buffer) not in replaced:
                    replaced[id(buffer)] = torch.empty(
                        buffer.shape, dtype=buffer.dtype, device="cpu"
                    )
                module._buffers[name] = replaced[id(buffer)]
        for name, value in list(vars(module).items()):
            # Some modules keep tensors as plain attributes (rotary "original_inv_freq").
            if isinstance(value, torch.Tensor) and value.device.type == "meta":
                if id(value) not in replaced:
                    replaced[id(value)] = torch.empty(value.shape, dtype=value.dtype, device="cpu")
                setattr(module, name, replaced[id(value)])
    return list(replaced.values())


def answer_for_transformers() -> None:
    """Make mask code behave as with real tensors, for batches that are neither padded nor packed.

    transformers skips its mask short cuts when it sees a fake tensor (``is_tracing``), asks the
    positions whether sequences are packed and the mask whether it is all ones (``fast_all``);
    fake tensors cannot answer.
    """
    answers = {"is_tracing": False, "find_packed_sequence_indices": None, "fast_all": True}
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith("transformers") or module is None:
            continue
        for name, answer in answers.items():
            if name in vars(module):
                setattr(module, name, lambda *args, answer=answer, **kwargs: answer)
    draw = torch.rand

    def rand(*size: Any, **kwargs: Any) -> Any:
        # LayerDrop draws one number per layer and branches on it; no dropped layer is the worst.
        return 1.0 if size in (((),), ([],)) else draw(*size, **kwargs)

    torch.rand = rand
