"""The recipe's optimizer, the real one, and fp32 copies of 16-bit weights where it has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import nn

from batchplan.tracer.worker.built import WorkerError

from .libraries import need

LEARNING_RATE = 1e-5


@dataclass
class Weight:
    """A parameter that trains."""

    parameter: torch.Tensor
    is_embedding: bool
    is_layer_matrix: bool
    """A matrix outside embedding and head."""


def weights_of(model: nn.Module) -> list[Weight]:
    """Return what trains, in the model's order."""
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    outside = embeddings | {id(getattr(head, "weight", None))}
    return [
        Weight(
            parameter=parameter,
            is_embedding=id(parameter) in embeddings,
            is_layer_matrix=parameter.ndim == 2 and id(parameter) not in outside,
        )
        for parameter in model.parameters()
        if parameter.requires_grad
    ]


def _impl(request: dict[str, Any]) -> dict[str, Any]:
    impl = request["optimizer_impl"]
    return {
        "lr": LEARNING_RATE,
        "fused": True if impl == "fused" else None,
        "foreach": {"foreach": True, "for-loop": False}.get(impl),
    }


def _adamw(weights: list[Weight], request: dict[str, Any]) -> list[Any]:
    return [torch.optim.AdamW([weight.parameter for weight in weights], **_impl(request))]


def _sgd(weights: list[Weight], request: dict[str, Any]) -> list[Any]:
    return [torch.optim.SGD([weight.parameter for weight in weights], **_impl(request))]


def _sgd_momentum(weights: list[Weight], request: dict[str, Any]) -> list[Any]:
    parameters = [weight.parameter for weight in weights]
    return [torch.optim.SGD(parameters, momentum=0.9, **_impl(request))]


def _adafactor(weights: list[Weight], request: dict[str, Any]) -> list[Any]:
    # As transformers' Trainer makes it.
    from transformers.optimization import Adafactor

    parameters = [weight.parameter for weight in weights]
    return [Adafactor(parameters, lr=LEARNING_RATE, scale_parameter=False, relative_step=False)]


def _muon(weights: list[Weight], request: dict[str, Any]) -> list[Any]:
    if not hasattr(torch.optim, "Muon"):
        raise WorkerError(f"torch {torch.__version__} has no Muon; 2.9 or later has.")
    matrices = [weight.parameter for weight in weights if weight.is_layer_matrix]
    others = [weight for weight in weights if not weight.is_layer_matrix]
    made = [torch.optim.Muon(matrices, lr=LEARNING_RATE)] if matrices else []
    return made + (_adamw(others, request) if others else [])


def _bitsandbytes(name: str) -> Callable[[list[Weight], dict[str, Any]], list[Any]]:
    def make(weights: list[Weight], request: dict[str, Any]) -> list[Any]:
        what = f"--optimizer {request['optimizer']}"
        bitsandbytes = need("bitsandbytes", what=what, package="bitsandbytes")
        manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
        for weight in weights:
            # transformers trainer.py, create_optimizer: embeddings stay in 32 bits.
            if weight.is_embedding:
                manager.override_config(weight.parameter, "optim_bits", 32)
        parameters = [weight.parameter for weight in weights]
        manager.register_parameters(parameters)
        return [getattr(bitsandbytes.optim, name)(parameters, lr=LEARNING_RATE)]

    return make


_MAKERS = {
    "adamw": _adamw,
    "adamw-8bit": _bitsandbytes("AdamW8bit"),
    "paged-adamw-8bit": _bitsandbytes("PagedAdamW8bit"),
    "adafactor": _adafactor,
    "sgd": _sgd,
    "sgd-momentum": _sgd_momentum,
    "lion": _bitsandbytes("Lion"),
    "muon": _muon,
}


def make_optimizers(weights: list[Weight], request: dict[str, Any]) -> list[Any]:
    """Return the optimizers of the recipe over ``weights``: two for Muon, else one."""
    return _MAKERS[request["optimizer"]](weights, request)


class MasterCopies:
    """fp32 copies that the optimizer updates in place of 16-bit weights, one tensor at a time.

    A plain stand-in for what DeepSpeed and Megatron do: no flat buffers, no buckets.
    """

    def __init__(self, weights: list[Weight], request: dict[str, Any]) -> None:
        self._weights = weights
        self._masters = [
            Weight(
                parameter=nn.Parameter(weight.parameter.detach().float()),
                is_embedding=weight.is_embedding,
                is_layer_matrix=weight.is_layer_matrix,
            )
            for weight in weights
        ]
        self._optimizers = make_optimizers(self._masters, request)

    def step(self) -> None:
        """Update each copy with its weight's gradient, and the weight with the copy."""
        for weight, master in zip(self._weights, self._masters):
            if weight.parameter.grad is None:
                continue
            master.parameter.grad = weight.parameter.grad.float()
            for optimizer in self._optimizers:
                optimizer.step()
            master.parameter.grad = None
            with torch.no_grad():
                weight.parameter.copy_(master.parameter)
