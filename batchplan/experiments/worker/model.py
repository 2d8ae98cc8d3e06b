"""The model as it trains: the recipe's dtypes and adapters, weights as drawn or as published."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from batchplan.prober.worker import losses
from batchplan.prober.worker.prepare import load_weights
from batchplan.prober.worker.training import autocast
from batchplan.tracer.worker import build
from batchplan.tracer.worker.built import Built, RequestError
from batchplan.tracer.worker.step import outputs_in_fp32

IGNORED = -100
"""Label of a token that is no target: torch's and transformers' ``ignore_index``."""


def place_model(request: dict[str, Any], place: Any) -> Built:
    """Return the model in training mode on the place's device, the same on every rank.

    Unlike a probe's, its random weights are those that the model's own initialisation draws: what
    is measured depends on them.

    Raises:
        WorkerError: when the model cannot be built, or has no next-token loss.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(request["seed"])
    device = str(place.device)
    built = build.build({**request, "loss": "standard"}, whole=True, device=device)
    if built.is_encoder_decoder or type(base_of(built.model)).__name__.endswith("ForMaskedLM"):
        raise RequestError(
            f"{type(base_of(built.model)).__name__} does not predict the next token, which is what "
            "is counted and measured here."
        )
    if request["loads_weights"]:
        load_weights(built.model, request)
    losses.install(built, request["loss"])
    if place.num_ranks > 1:
        import torch.distributed as dist

        for tensor in (*built.model.parameters(), *built.model.buffers()):
            dist.broadcast(tensor.data, 0)
    # From here on ranks differ: in their dropout masks, as in training.
    torch.manual_seed(request["seed"] + place.rank)
    return built


def base_of(model: nn.Module) -> nn.Module:
    """Return the model below peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that train; tied ones are one parameter and come once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def mean_loss(model: nn.Module, fed: dict[str, Any], request: dict[str, Any]) -> Any:
    """Return the model's own loss: the mean over target tokens, and what the model adds to it."""
    with autocast(request, fed["input_ids"].device):
        outputs = outputs_in_fp32(request, model(**fed))
    if outputs.loss is None:
        raise RequestError(f"{type(base_of(model)).__name__} returns no loss.")
    return outputs.loss
