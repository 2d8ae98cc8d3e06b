"""The optimizer whose step is recorded: torch's own, or a stand-in that allocates alike."""

from __future__ import annotations

from typing import Any

import torch

_TORCH = {
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {}),
    "sgd-momentum": (torch.optim.SGD, {"momentum": 0.9}),
}


def make_optimizer(request: dict[str, Any], parameters: list[torch.nn.Parameter]) -> Any:
    """Return an optimizer with ``step`` and ``zero_grad`` over ``parameters``."""
    cls, options = _TORCH[request["optimizer"]]
    impl = request["optimizer_impl"]
    return cls(
        parameters,
        lr=1e-5,
        fused=True if impl == "fused" else None,
        foreach={"foreach": True, "for-loop": False}.get(impl),
        **options,
    )
