"""Windows of gradients at fixed parameters, one event each, until the parent has heard enough."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from batchplan.prober.worker.main import versions
from batchplan.tracer.worker.built import WorkerError

from .data import collate, windows
from .model import mean_loss, place_model, trained
from .sums import GradientSums

SAY_SECONDS = 1.0
"""Between two lines of progress."""


def run(request: dict[str, Any], place: Any) -> None:
    """Take the gradients of every window that comes; no parameter ever changes."""
    place.tell("phase", text="building the model")
    model = place_model(request, place).model
    parameters = trained(model)
    place.tell(
        "ready",
        device_name=_device_name(place),
        num_parameters=sum(parameter.numel() for parameter in parameters),
        has_dropout=has_dropout(model),
        versions=versions(),
    )
    sums = GradientSums(parameters)
    said = 0.0
    for number, window in enumerate(windows(Path(request["folder"])), start=1):
        sums.restart()
        for position in range(place.rank, len(window), place.num_ranks):
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                where = f"micro-batch {position + 1} of {len(window)}"
                place.tell("phase", text=f"window {number}, {where}")
            add_micro_batch(model, parameters, window[position], request, place, sums)
        result = sums.result(place.sum)
        if place.rank == 0:
            place.tell("window", **result)


def add_micro_batch(
    model: Any,
    parameters: list[Any],
    rows: list[Any],
    request: dict[str, Any],
    place: Any,
    sums: GradientSums,
) -> None:
    """Add one micro-batch's gradient, before any clipping, and drop it.

    Gradients are dropped each time: of a sum in ``.grad`` only differences could be had.
    """
    batch = collate(rows, place.device)
    # The mean times its tokens: the sum, whose gradients add up over micro-batches.
    loss = mean_loss(model, batch.fed, request) * batch.num_tokens
    loss.backward()
    square = sums.add(
        (parameter.grad for parameter in parameters),
        num_tokens=batch.num_tokens,
        num_sequences=batch.num_sequences,
        loss=float(loss.detach()),
    )
    for parameter in parameters:
        parameter.grad = None
    if not math.isfinite(square):
        raise WorkerError(
            "A gradient is not finite. In fp16 gradients overflow: measure with --numerics "
            "bf16-autocast or fp32; elsewhere the loss itself is not finite."
        )


def has_dropout(model: Any) -> bool:
    """Whether anything is dropped at random in training mode, by modules or by what they call."""
    return any(
        isinstance(value, float) and value > 0
        for module in model.modules()
        for name, value in (*vars(module).items(), ("drop", getattr(module, "p", 0.0)))
        if "drop" in name
    )


def _device_name(place: Any) -> str:
    if place.device.type != "cuda":
        return "CPU"
    import torch

    return str(torch.cuda.get_device_name(place.device))
