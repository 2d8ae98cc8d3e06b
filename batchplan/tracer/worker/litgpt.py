"""LitGPT's own model, and the loss as its recipes compute it.

LitGPT's ``GPT`` returns logits; its scripts compute the loss and hold the logits in a local
variable until the next forward has returned. A subclass of the model does both here, so that the
rest of the worker sees what transformers' models are: called with labels, it returns a loss.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from . import build as transformers_build
from .built import DTYPES, Built, RequestError, WorkerError, one_line
from .profile import MIN_BUCKET
from .quantised import Linear4bit, quantise

CHUNK = 128
"""Tokens of logits that one product of the head makes, and that one term of the loss takes:
litgpt/finetune/lora.py, ``model(input_ids, lm_head_chunk_size=128)``; litgpt/utils.py,
``chunked_cross_entropy`` (0.2.0 to 0.5.13)."""
_TARGETS = ("query", "key", "value", "projection", "mlp", "head")
_AS_IN_LLAMA = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "projection",
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
    "lm_head": "head",
}
"""transformers' words for them, so that one recipe goes with either code."""


class _Output(dict):  # type: ignore[type-arg]
    """What ``forward`` returns: a loss, by name or as an item."""

    @property
    def loss(self) -> Any:
        """The loss."""
        return self["loss"]


class _WithLoss:
    """Mixed into ``GPT``: labels in, loss out."""

    def forward(self, input_ids: Any, labels: Any) -> _Output:
        """Return the loss, which keeps the logits as the scripts' local variable does.

        Source: litgpt/finetune/lora.py, litgpt/finetune/full.py and litgpt/pretrain.py
        (``chunked``), whose logits come in fp32 from Fabric: lightning/fabric/plugins/precision,
        ``convert_output``; thunder/benchmarks/benchmark_litgpt.py (``standard``), without Fabric.
        """
        is_chunked, adapts = self._batchplan_recipe  # type: ignore[attr-defined]
        chunks = {"lm_head_chunk_size": CHUNK} if adapts else {}
        logits = super().forward(input_ids, **chunks)  # type: ignore[misc]
        if is_chunked:
            if isinstance(logits, list):
                logits = [chunk.float() for chunk in logits]
            else:
                logits = logits.float()
        if isinstance(logits, list):
            logits[-1] = logits[-1][..., :-1, :]
            loss = _chunked_loss(logits, labels[..., 1:])
        elif is_chunked:
            loss = _LossOfRows.apply(logits.reshape(-1, logits.size(-1)))
        else:
            loss = nn.functional.cross_entropy(
                logits.reshape(-1, logits.size(-1)), labels.reshape(-1)
            )
        loss.logits = logits
        return _Output(loss=loss)

    def get_output_embeddings(self) -> Any:
        """Return the head's linear layer."""
        head = self.lm_head  # type: ignore[attr-defined]
        return getattr(head, "linear", head)

    def get_base_model(self) -> Any:
        """Return the model under its adapters: they are part of it."""
        return self


def _chunked_loss(logits: Any, targets: Any) -> Any:
    """LitGPT's ``chunked_cross_entropy`` of a list of logits, whose module needs all of lightning.

    Source: litgpt/utils.py (0.2.0 to 0.5.13).
    """
    rows = [chunk.reshape(-1, chunk.size(-1)) for chunk in logits]
    targets_of = [chunk.reshape(-1) for chunk in targets.split(logits[0].size(1), dim=1)]
    losses = [
        nn.functional.cross_entropy(chunk, target, reduction="none")
        for chunk, target in zip(rows, targets_of)
    ]
    counted = (targets != -100).sum()
    return torch.cat(losses).sum() / counted.maximum(torch.ones_like(counted))


class _LossOfRows(torch.autograd.Function):
    """``chunked_cross_entropy`` of whole logits: 128 rows a term, so terms grow with the batch.

    Terms keep their log-probabilities, and in backward each gives them up for the gradient of its
    rows; the rows are then joined. The temporaries of one term are left out.

    Source: litgpt/utils.py (0.2.0 to 0.5.13).
    """

    @staticmethod
    def forward(ctx: Any, logits: Any) -> Any:
        """Logits (n, V); returns the loss."""
        ctx.log_probabilities = torch.empty_like(logits)
        return logits.new_empty(logits.shape[0]).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradient of the logits."""
        shape, dtype = ctx.log_probabilities.shape, ctx.log_probabilities.dtype
        del ctx.log_probabilities
        rows = grads[0].new_empty(shape, dtype=dtype)
        return rows.clone()


def build(request: dict[str, Any], *, whole: bool = False) -> Built:
    """Build the model on ``meta``, count it, cut it to its distinct layers.

    ``whole`` leaves every layer.
    """
    _refuse(request)
    adapts = request["method"] != "full"
    cls, config = _class_and_config(request, adapts=adapts)
    model = _instantiate(cls, config, request)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    num_params = sum(p.numel() for p in model.parameters()) - (trained if adapts else 0)
    stacks = transformers_build._find_stacks(model, config)
    for stack in stacks:
        stack.kept = list(range(len(stack.kinds)))
    if not whole:
        transformers_build._cut(config, stacks)
    if request["is_quantised"]:
        _quantise(model, request)
    if request["checkpointing"] == "full":
        for stack in stacks:
            for block in stack.module:
                _checkpoint(block)
    model.train()
    notes = []
    if request["attention"] != "sdpa":
        notes.append(f"LitGPT attends through SDPA, not {request['attention']}.")
    return Built(
        model=model,
        config=config,
        stacks=stacks,
        num_params=num_params,
        attention="sdpa",
        is_encoder_decoder=False,
        notes=notes,
        quantises_head=request["is_quantised"],
    )


def _refuse(request: dict[str, Any]) -> None:
    if request["loss"] == "fused":
        raise RequestError("LitGPT has no fused loss; use --loss standard or chunked.")
    if request["checkpointing"] == "selective":
        raise RequestError("LitGPT checkpoints every block or none; use --checkpointing full.")
    if request["method"] != "full" and request["adapter_dtype"] != request["weight_dtype"]:
        raise RequestError(
            "LitGPT keeps adapters in the dtype of the weights; use --adapter-dtype "
            f"{request['weight_dtype']}."
        )


def _class_and_config(request: dict[str, Any], *, adapts: bool) -> tuple[Any, Any]:
    try:
        module = importlib.import_module("litgpt.lora" if adapts else "litgpt.model")
    except ImportError as error:
        raise WorkerError(f"LitGPT cannot be imported: {one_line(error)}") from error
    fields = {name: value for name, value in request["config"].items() if name != "model_type"}
    if adapts:
        fields |= _adapter_fields(request)
    name = fields.pop("name", "")
    try:
        config = _preset(module.Config, name, fields) if name else module.Config(**fields)
    except (ValueError, TypeError) as error:
        raise RequestError(f"LitGPT does not accept this config: {one_line(error)}") from error
    if getattr(config, "n_expert", 0):
        raise WorkerError("LitGPT's experts choose tokens by value, which fake tensors lack.")
    return module.GPT, config


def _preset(config_class: Any, name: str, fields: dict[str, Any]) -> Any:
    """Return a preset by LitGPT's name of it or by its id on the Hub, which old releases miss."""
    try:
        return config_class.from_name(name, **fields)
    except ValueError:
        return config_class.from_name(name.rpartition("/")[2], **fields)


def _adapter_fields(request: dict[str, Any]) -> dict[str, Any]:
    given = [name.strip() for name in request["lora_targets"].split(",")]
    chosen = [_AS_IN_LLAMA.get(name, name) for name in given]
    if chosen == ["all-linear"]:
        chosen = list(_TARGETS[:-1])
    unknown = [name for name in chosen if name not in _TARGETS]
    if unknown:
        raise RequestError(
            f"LitGPT has no LoRA target {unknown[0]!r}; --lora-targets takes all-linear or some of "
            f"{', '.join(_TARGETS)}."
        )
    return {
        "lora_r": request["lora_rank"],
        "lora_alpha": 2 * request["lora_rank"],
        "lora_dropout": request["lora_dropout"],
        **{f"lora_{name}": name in chosen for name in _TARGETS},
    }


def _instantiate(cls: Any, config: Any, request: dict[str, Any]) -> Any:
    seq_len = request["seq_len"]
    if seq_len > config.block_size:
        raise RequestError(f"--seq-len {seq_len} is more than LitGPT's {config.block_size}.")
    end = MIN_BUCKET
    while end < seq_len:
        end *= 2
    # A profile is fitted up to the end of its range of lengths, which the tables must reach.
    config.block_size = max(config.block_size, end)
    config.head_dim = config.head_size
    dtype = DTYPES[request["weight_dtype"]]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = type(cls.__name__, (_WithLoss, cls), {})(config)
    except Exception as error:
        raise RequestError(f"LitGPT cannot build this model: {one_line(error)}") from error
    finally:
        torch.set_default_dtype(before)
    # Rotary tables too: Fabric casts the whole module, as Thunder's benchmark does.
    model.to(dtype)
    adapts = request["method"] != "full"
    # The LoRA recipe knows no other loss, so its standard one is chunked too.
    is_fabric = request["loss"] == "chunked" or request["fp32_outputs"]
    model._batchplan_recipe = (adapts or is_fabric, adapts)
    # Registered first and run last; stages take their parameters in order of registration.
    model._modules["lm_head"] = model._modules.pop("lm_head")
    if adapts:
        importlib.import_module("litgpt.lora").mark_only_lora_as_trainable(model)
        for module in model.modules():
            # Made on first use and kept from then on: no activation.
            getattr(module, "lora_ind", None)
    return model


def _quantise(model: Any, request: dict[str, Any]) -> None:
    """Replace every linear layer: the recipes ask Fabric to leave none out, not even the head.

    Source: litgpt/finetune/lora.py, ``BitsandbytesPrecision(quantize[4:], dtype)`` (0.2.0 to
    0.5.13); lightning/fabric/plugins/precision/bitsandbytes.py, ``_convert_layers``,
    ``_Linear4bit.quantize``.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    compute = DTYPES[request["autocast_dtype"] or request["weight_dtype"]]
    quantise(model, compute)
    head = model.get_output_embeddings()
    head.__class__, head.compute_dtype = Linear4bit, compute
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Quantised from fp16, so what bitsandbytes dequantises to is cast once more.
            module.weight.data = module.weight.data.to(torch.float16)
    for parameter in trained:
        parameter.requires_grad_(True)


def _checkpoint(block: nn.Module) -> None:
    """Recompute a block in backward.

    Source: lightning/fabric/strategies/fsdp.py, ``_setup_activation_checkpointing``.
    """
    block.forward = functools.partial(
        checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
    )
