"""The user's model class, small: few layers and narrow ones, random fp32 weights, no dropout."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from batchplan.tracer.worker import build
from batchplan.tracer.worker.built import RequestError, WorkerError, one_line

LAYERS, HEADS, EXPERTS, EXPERTS_PER_TOKEN, VOCABULARY = 2, 2, 4, 2, 1024
"""What is left of a model. Layers of other kinds come on top, one of each; a head keeps its width,
which position encodings depend on, and so decides the model's."""

_HEAD_COUNTS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads")
_OTHER_HEADS = ("decoder_attention_heads", "num_decoder_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "pooler_hidden_size")
_INNER = (
    *("intermediate_size", "n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
    *("moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size"),
    "hidden_dim",
)
_LAYER_COUNTS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"),
    *("encoder_layers", "decoder_layers"),
)
_CAPS = {
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token"), EXPERTS_PER_TOKEN),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "decoder_sparse_step"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
}
_RANDOM = ("drop", "jitter")
"""Parts of the names of settings that make two forward passes differ."""
_TOKENS = ("_token_id", "_token_index")


def make(request: dict[str, Any], device: torch.device) -> nn.Module:
    """Return the model in training mode on ``device``.

    Raises:
        WorkerError: when transformers has no class of it with a loss, or its gradients do not fit.
    """
    whole = build._config(request)
    cls = _class_with_loss(whole, request)
    config, num_params = _smallest(cls, whole, request)
    _refuse_too_large(num_params, request, device)
    torch.manual_seed(request["seed"])
    model = _instance(cls, config, request).float()
    if request["method"] == "lora":
        model = _adapted(model, request)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model.to(device).train()


def _smallest(cls: Any, whole: Any, request: dict[str, Any]) -> tuple[Any, int]:
    """Return the config of the smallest model that the class can be, and its parameters."""
    sizes = [dict] if request["full"] else [_narrow, _shallow]
    refusals = []
    for size in sizes:
        try:
            config = type(whole).from_dict(size(whole.to_dict()))
            config._name_or_path = whole._name_or_path
            _without_randomness(config)
            with torch.device("meta"):
                model = _instance(cls, config, request)
        except Exception as refused:  # a class that cannot be this small says so in many ways
            refusals.append(one_line(refused))
        else:
            return config, sum(parameter.numel() for parameter in model.parameters())
    hint = "" if request["full"] else "; --full keeps its own size"
    raise WorkerError(f"{cls.__name__} cannot be built this small: {refusals[-1]}{hint}.")


def _instance(cls: Any, config: Any, request: dict[str, Any]) -> nn.Module:
    if hasattr(cls, "from_config"):
        return cls.from_config(config, trust_remote_code=request["trust_remote_code"])
    return cls(config)


def _refuse_too_large(num_params: int, request: dict[str, Any], device: torch.device) -> None:
    """Refuse a model whose gradients, several of which are compared, do not fit."""
    # Of every micro-batch, every window by itself and by every loop; the model, its copy, and the
    # gradients of both.
    windows = 3
    vectors = windows * request["accum_steps"] + windows * (1 + len(request["subjects"])) + 4
    needed = 4 * num_params * vectors
    free = free_bytes(device)
    if free is not None and needed > free:
        raise RequestError(
            f"{num_params:,} parameters in fp32 and {vectors} gradients take "
            f"{needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free: leave out --full, "
            "or lower --accum-steps."
        )


def free_bytes(device: torch.device) -> int | None:
    """Return what is free on the device; None where the host does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def _class_with_loss(config: Any, request: dict[str, Any]) -> Any:
    import transformers

    for name in getattr(config, "architectures", None) or []:
        cls = getattr(transformers, name, None)
        if cls is not None and "labels" in inspect.signature(cls.forward).parameters:
            return cls
    return build._model_class(config, request)


def _without_randomness(config: Any) -> None:
    for part in build._config_parts(config):
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and any(word in name for word in _RANDOM):
                setattr(part, name, 0.0)


def _shallow(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a config with two layers and one more of every other kind."""
    small = {
        name: _shallow(value) if isinstance(value, dict) and "_config" in name else value
        for name, value in raw.items()
    }
    counts = {name: raw[name] for name in _LAYER_COUNTS if isinstance(raw.get(name), int)}
    kept = _kept_layers(raw, set(counts.values()))
    for name, count in counts.items():
        small[name] = len(kept.get(count, range(min(count, LAYERS))))
    for name, value in raw.items():
        if isinstance(value, list) and len(value) in kept:
            small[name] = [value[i] for i in kept[len(value)]]
    if isinstance(raw.get("depths"), list):  # stages of convolutions
        small["depths"] = [1] * len(raw["depths"])
    return small


def _kept_layers(raw: dict[str, Any], counts: set[int]) -> dict[int, list[int]]:
    kept = {}
    for count in counts:
        kinds = raw.get("layer_types")
        if isinstance(kinds, list) and len(kinds) == count:
            chosen = {kinds.index(kind) for kind in kinds}
        else:
            chosen = set()
        for position in range(count):
            if len(chosen) < min(count, LAYERS):
                chosen.add(position)
        kept[count] = sorted(chosen)
    return kept


def _narrow(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a shallow config with two heads of their own width, and little beside them."""
    small = _shallow(raw)
    for name, value in small.items():
        if isinstance(value, dict) and "_config" in name:
            small[name] = _narrow(value)
        elif name in _CAPS and isinstance(value, int):
            small[name] = min(value, _CAPS[name])
    heads = next((raw[name] for name in _HEAD_COUNTS if isinstance(raw.get(name), int)), None)
    width = next((raw[name] for name in _WIDTHS if isinstance(raw.get(name), int)), None)
    if heads is not None and width is not None and heads > HEADS:
        per_head = raw.get("head_dim") or raw.get("d_kv") or width // heads
        new = HEADS * per_head
        small.update({name: new for name in _WIDTHS if isinstance(raw.get(name), int)})
        small.update(
            {n: HEADS for n in (*_HEAD_COUNTS, *_OTHER_HEADS) if isinstance(raw.get(n), int)}
        )
        for name in _KEY_VALUE_HEADS:
            if isinstance(raw.get(name), int):
                small[name] = HEADS if raw[name] == heads else 1
        for name in _INNER:
            if isinstance(raw.get(name), int):
                small[name] = min(raw[name], 2 * new)
    vocabulary = small.get("vocab_size")
    if isinstance(vocabulary, int):
        for name, value in small.items():
            if name.endswith(_TOKENS) and isinstance(value, int) and value >= vocabulary:
                small[name] = value % vocabulary
    return small


def _adapted(model: nn.Module, request: dict[str, Any]) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise WorkerError(
            "LoRA needs peft, which this environment does not have: pip install peft."
        ) from error
    targets = request["lora_targets"]
    config = LoraConfig(
        r=request["lora_rank"],
        target_modules=targets if targets == "all-linear" else targets.split(","),
        # A fresh adapter's B is 0 and hides A from every gradient.
        init_lora_weights=False,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise RequestError(f"peft refuses these LoRA targets: {one_line(error)}") from error
