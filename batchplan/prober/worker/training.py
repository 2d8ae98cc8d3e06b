"""The training loop: what a trainer runs, with random tokens at full length."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from batchplan.tracer.worker.built import DTYPES, Built, WorkerError
from batchplan.tracer.worker.step import outputs_in_fp32

from .optimizers import MasterCopies, make_optimizers, weights_of
from .prepare import materialise

MAX_GRAD_NORM = 1.0
"""transformers' and most others' default of gradient clipping."""


class Plain:
    """Training without an engine: one device, or whole copies under torch's DDP."""

    notes: tuple[str, ...] = ()

    @staticmethod
    def connect() -> None:
        """Make ready what ranks talk through, before anything is measured."""

    def __init__(self, built: Built, request: dict[str, Any], device: torch.device) -> None:
        self._model = built.model
        self._request = request
        self._device = device
        materialise(built.model, request, device)
        if request["num_ranks"] > 1:
            from torch.nn.parallel import DistributedDataParallel

            self._model = DistributedDataParallel(
                built.model, gradient_as_bucket_view=request["bucket_view"]
            )
        weights = weights_of(built.model)
        self._parameters = [weight.parameter for weight in weights]
        if request["has_master"]:
            self._optimizers: list[Any] = [MasterCopies(weights, request)]
            self.notes = ("fp32 master copies are held plainly, tensor by tensor",)
        else:
            self._optimizers = make_optimizers(weights, request)
        self._scaler = torch.amp.GradScaler(
            device.type, enabled=request["autocast_dtype"] == "fp16"
        )

    def micro_batch(self, fed: dict[str, torch.Tensor], *, is_last: bool) -> None:
        """Run forward and backward; DDP sends gradients with the last one only."""
        waits = self._request["num_ranks"] > 1 and not is_last
        with self._model.no_sync() if waits else contextlib.nullcontext():
            with autocast(self._request, self._device):
                outputs = outputs_in_fp32(self._request, self._model(**fed))
            self._scaler.scale(loss_of(outputs, self._request)).backward()

    def update(self) -> None:
        """Clip, update and drop the gradients."""
        # GradScaler knows one optimizer a step, and master copies no scaler.
        scaled = self._scaler.is_enabled() and not self._request["has_master"]
        for optimizer in self._optimizers:
            if scaled:
                self._scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRAD_NORM)
        for optimizer in self._optimizers:
            self._scaler.step(optimizer) if scaled else optimizer.step()
        if scaled:
            self._scaler.update()
        for parameter in self._parameters:
            parameter.grad = None


def loss_of(outputs: Any, request: dict[str, Any]) -> Any:
    """Return a micro-batch's share of the loss."""
    if outputs.loss is None:
        raise WorkerError("The model returns no loss.")
    return outputs.loss / request["accum_steps"]


def train(
    built: Built,
    request: dict[str, Any],
    *,
    engine_class: Any,
    device: torch.device,
    meter: Any,
    tell: Any,
) -> None:
    """Place the model and run the steps; ``tell`` gets the notes and every step's figures."""
    tell("phase", text="placing the model")
    engine = engine_class(built, request, device)
    tell("placed", notes=list(engine.notes), **meter.peaks())
    draw = _Inputs(built, (request["micro_batch"], request["seq_len"]), device)
    gc.collect()
    for number in range(1, request["num_steps"] + 1):
        tell("phase", text=f"step {number} of {request['num_steps']}")
        started = time.perf_counter()
        # A trainer fetches the micro-batches of a step before the first forward.
        batches = [draw() for _ in range(request["accum_steps"])]
        for position, batch in enumerate(batches, start=1):
            fed = {name: batch[name] for name in ("input_ids", "labels")}
            engine.micro_batch(fed, is_last=position == len(batches))
            del fed
        engine.update()
        del batches, batch
        meter.synchronise()
        tell("step", seconds=time.perf_counter() - started, **meter.peaks())


class _Inputs:
    """Random micro-batches at full length, free of tokens with a meaning of their own."""

    def __init__(self, built: Built, shape: tuple[int, int], device: torch.device) -> None:
        config = built.config
        parts = [config]
        if hasattr(config, "get_text_config"):
            parts.append(config.get_text_config())
        self._vocabulary = int(parts[-1].vocab_size)
        special = {
            value
            for part in parts
            for name, value in vars(part).items()
            if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
        }
        self._special = sorted(special)
        self._plain = next(number for number in range(len(special) + 1) if number not in special)
        self._shape, self._device = shape, device

    def __call__(self) -> dict[str, torch.Tensor]:
        """Return ids, labels and a mask of ones."""
        ids, labels = (
            torch.randint(0, self._vocabulary, self._shape, device=self._device) for _ in range(2)
        )
        for token in self._special:
            ids.masked_fill_(ids == token, self._plain)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@contextlib.contextmanager
def autocast(request: dict[str, Any], device: torch.device) -> Iterator[None]:
    """Run what is inside under the recipe's autocast, if it has one."""
    name = request["autocast_dtype"]
    if name is None:
        yield
        return
    with torch.autocast(device.type, dtype=DTYPES[name]):
        yield


def warm_up() -> None:
    """Load what torch imports at the first step, so that it is no part of what is measured."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.AdamW([weight], foreach=False)
    loss = checkpoint(lambda x: (x * x).sum(), weight, use_reentrant=False)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([weight], MAX_GRAD_NORM)
    optimizer.step()
