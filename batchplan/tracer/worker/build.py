"""From a config to a module on fake tensors, with one to three layers of every distinct kind."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
from torch import nn

from . import losses, recipe
from .built import DTYPES, Built, RequestError, Stack, WorkerError, one_line

_HEADS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration", "ForSeq2SeqLM")
MAX_LAYERS = 2000


def build(request: dict[str, Any], *, whole: bool = False, device: str = "meta") -> Built:
    """Build the model on ``meta``, count it, cut it to its distinct layers, add adapters.

    ``whole`` leaves every layer. On another device the model draws its weights as it always does.
    """
    config = _config(request)
    cls = _model_class(config, request)
    notes: list[str] = []
    model = _instantiate(cls, config, DTYPES[request["weight_dtype"]], request["attention"], device)
    num_params = sum(parameter.numel() for parameter in model.parameters())
    is_selective = request["checkpointing"] == "selective"
    stacks = _find_stacks(model, config, period=recipe.CHECKPOINT_EVERY if is_selective else 1)
    for stack in stacks:
        stack.kept = list(range(len(stack.kinds)))
    if not whole:
        _cut(config, stacks)
    attention = _switch_attention(model, request["attention"], notes)
    recipe.set_dtypes(model, request)
    if request["method"] != "full":
        model = recipe.add_adapters(model, request, device)
    if request["checkpointing"] != "none":
        recipe.enable_checkpointing(model, request, notes)
    if is_selective:
        recipe.checkpoint_some(stacks)
    if request["checkpointing"] != "none" and getattr(config, "is_encoder_decoder", False):
        notes.append(
            "A bias that every layer reads (T5's position bias) is let go late under "
            "checkpointing: the peak may be up to 2 % off, and 8 % lower for a single sequence."
        )
    model.train()
    built = Built(
        model=model,
        config=config,
        stacks=stacks,
        num_params=num_params,
        attention=attention,
        is_encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)),
        notes=notes,
    )
    losses.install(built, request["loss"], is_exact=whole)
    return built


def _config(request: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    raw = _decoded(request["config"])
    try:
        if request["trust_remote_code"] and raw.get("auto_map"):
            config = AutoConfig.from_pretrained(request["model_ref"], trust_remote_code=True)
        else:
            config = AutoConfig.for_model(raw.pop("model_type", "missing"), **raw)
    except Exception as error:
        if raw.get("auto_map") and not request["trust_remote_code"]:
            raise RequestError(
                "This model needs its own code, which is never run unasked. Read it, then pass "
                "--trust-remote-code."
            ) from error
        raise RequestError(
            f"transformers does not accept this config: {one_line(error)}"
        ) from error
    config.use_cache = False
    if "tie_word_embeddings" in raw:
        # T5's class forces True where the published flan-t5 files say False and mean it.
        config.tie_word_embeddings = raw["tie_word_embeddings"]
    return config


_FLOATS = {name: float(name) for name in ("Infinity", "-Infinity", "NaN")}


def _decoded(value: Any) -> Any:
    """Return a config with the floats that JSON lacks, as Mamba-2's infinite time step.

    Source: transformers 5.23, ``PreTrainedConfig._encode_special_floats``.
    """
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"} and value["__float__"] in _FLOATS:
        return _FLOATS[value["__float__"]]
    return {name: _decoded(each) for name, each in value.items()}


def _model_class(config: Any, request: dict[str, Any]) -> Any:
    """Return the class that trains: the one the config names, or the family's with a loss."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    for name in getattr(config, "architectures", None) or []:
        cls = getattr(transformers, name, None)
        if cls is not None and name.endswith(_HEADS):
            return cls
    # BERT and BART have causal variants too, which nobody means by a config that names no head.
    for mapping in (
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_MASKED_LM_MAPPING,
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    ):
        with contextlib.suppress(KeyError):
            if type(config) in mapping:
                return mapping[type(config)]
    if request["trust_remote_code"]:
        return transformers.AutoModelForCausalLM
    raise WorkerError(
        f"transformers has no language-model class with a loss for model_type "
        f"{getattr(config, 'model_type', '?')!r}."
    )


def _instantiate(
    cls: Any, config: Any, dtype: torch.dtype, attention: str, device: str
) -> nn.Module:
    # from_pretrained sets the default dtype too, so that what asks for fp32 explicitly (rotary
    # frequencies) stays fp32.
    if attention == "eager":
        config._attn_implementation = "eager"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if hasattr(cls, "from_config"):
                return cls.from_config(config, trust_remote_code=True)
            return cls(config)
    except Exception as error:
        raise RequestError(f"{cls.__name__} cannot be built: {one_line(error)}") from error
    finally:
        torch.set_default_dtype(before)


def _find_stacks(model: nn.Module, config: Any, *, period: int = 1) -> list[Stack]:
    """Return the outermost module lists that hold layers, in execution order.

    Layers that are alike but at different places within ``period`` are of different kinds.
    """
    stacks: list[Stack] = []
    signatures: dict[Any, int] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(stack.name + ".") for stack in stacks)
        if inside or not isinstance(module, nn.ModuleList) or not len(module):
            continue
        if any(isinstance(child, (nn.Linear, nn.Embedding)) for child in module):
            continue
        layer_types = _layer_types(config, len(module))
        kinds = [
            signatures.setdefault(
                (name, i % period, layer_types[i] if layer_types else None, _signature(layer)),
                len(signatures),
            )
            for i, layer in enumerate(module)
        ]
        stacks.append(Stack(name=name, module=module, kinds=kinds))
    if not stacks or len(stacks[0].kinds) > MAX_LAYERS:
        raise WorkerError(f"{type(model).__name__} has no list of layers that can be traced.")
    return stacks


def _layer_types(config: Any, length: int) -> Any:
    for part in _config_parts(config):
        types = getattr(part, "layer_types", None)
        if isinstance(types, (list, tuple)) and len(types) == length:
            return types
    return None


def _signature(module: nn.Module) -> Any:
    """Two layers of equal signature run the same ops: same classes, shapes and settings."""
    parts = []
    for name, child in module.named_modules():
        settings = tuple(
            (key, value)
            for key, value in sorted(vars(child).items())
            if isinstance(value, (int, float, str, bool, type(None)))
            and not key.endswith(("idx", "index", "layer_id", "layer_number"))
        )
        shapes = tuple(tuple(p.shape) for p in child._parameters.values() if p is not None)
        parts.append((name, type(child).__name__, settings, shapes))
    return tuple(parts)


def _config_parts(config: Any) -> list[Any]:
    names = ("text_config", "encoder", "decoder", "language_config", "llm_config")
    found = [getattr(config, name, None) for name in names]
    return [config] + [part for part in found if hasattr(part, "to_dict")]


def _cut(config: Any, stacks: list[Stack]) -> None:
    """Keep three layers of a stack's first kind and two of the others, in order of appearance.

    With three, one of them has neighbours of its own kind on both sides and another follows two
    of its kind: what those add is what every further layer of the kind adds. Where there are two
    stacks all layers may read what the first of a stack made, so three of every kind are kept.
    """
    for stack in stacks:
        stack.kept = []
        for position, kind in enumerate(dict.fromkeys(stack.kinds)):
            same = [i for i, other in enumerate(stack.kinds) if other == kind]
            stack.kept.extend(same[: 3 if position == 0 or len(stacks) > 1 else 2])
        whole = len(stack.kinds)
        layers = [stack.module[i] for i in stack.kept]
        for key in list(stack.module._modules):
            del stack.module._modules[key]
        for i, layer in enumerate(layers):
            stack.module._modules[str(i)] = layer
        for part in _config_parts(config):
            _cut_config(part, whole, stack.kept)


def _cut_config(config: Any, whole: int, kept: list[int]) -> None:
    # Written to __dict__: a setter may insist that all the lists agree while half are cut.
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == whole:
            config.__dict__[key] = [value[i] for i in kept]
    for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if vars(config).get(key) == whole:
            config.__dict__[key] = len(kept)


def _switch_attention(model: nn.Module, wanted: str, notes: list[str]) -> str:
    """Return the attention that will run; a family without the wanted one keeps its own."""
    config = model.config
    running = getattr(config, "_attn_implementation", None) or "eager"
    if wanted == "flash":
        code = vars(sys.modules[type(model).__module__])
        supported = (
            getattr(model, "_supports_flash_attn", False)
            or getattr(model, "_supports_flash_attn_2", False)
        ) and "ALL_ATTENTION_FUNCTIONS" in code
        if supported:
            for part in _config_parts(config):
                part._attn_implementation_internal = "flash_attention_2"
            return "flash"
        # Families that choose their attention class when they are built cannot be switched after.
        if running == "sdpa":
            notes.append(
                f"{type(model).__name__} is traced with SDPA's flash kernel in place of "
                "FlashAttention-2."
            )
            return "sdpa"
    if running != "sdpa" and wanted != "eager":
        notes.append(f"{type(model).__name__} supports only eager attention.")
    return "sdpa" if running == "sdpa" else "eager"
