"""A config from anywhere, checked before anything heavy sees it.

A ``config.json`` may come from a stranger's repository, a half-finished download or a typing
error. Sizes must be positive whole numbers within ceilings that no published model comes near;
what we do not know by name passes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from batchplan.errors import SpecError

MAX_DEPTH = 32
"""Deepest nesting; published configs stay below ten."""

_WIDTH, _HEADS, _LAYERS, _EXPERTS = 2**20, 2**16, 2000, 2**16
_INNER, _VOCAB, _POSITIONS = 2**24, 10**7, 2**31

# Field name → the largest value that can be meant.
_AT_LEAST_ONE = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size"), _WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), _LAYERS),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), _HEADS
    ),
    **dict.fromkeys(("num_kv_heads", "encoder_attention_heads", "decoder_attention_heads"), _HEADS),
    **dict.fromkeys(("head_dim", "d_kv", "v_head_dim", "global_head_dim"), _WIDTH),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "hidden_dim", "ffn_hidden_size"), _INNER
    ),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), _INNER),
    "vocab_size": _VOCAB,
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), _POSITIONS
    ),
}
# The same for fields in which 0 means "none of these".
_AT_LEAST_ZERO = {
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), _LAYERS),
    **dict.fromkeys(("num_nextn_predict_layers", "first_k_dense_replace"), _LAYERS),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), _INNER),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts"), _EXPERTS
    ),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk"), _EXPERTS),
    **dict.fromkeys(
        ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"), _WIDTH
    ),
    "type_vocab_size": _VOCAB,
}
_SIZES = {name: (1, most) for name, most in _AT_LEAST_ONE.items()} | {
    name: (0, most) for name, most in _AT_LEAST_ZERO.items()
}
_CLASS_NAME = re.compile(r"[A-Za-z0-9_.]{1,128}")
_MODEL_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def check_config(config: Any, where: str) -> None:
    """Refuse a config that no model can be built from, with the field, its value and what it takes.

    Vision and other composite configs pass; the sizes of every nested config are checked too.

    Args:
        config: parsed content of a ``config.json``.
        where: what to call it in messages.

    Raises:
        SpecError: on the first thing that is wrong.
    """
    if not isinstance(config, dict):
        raise SpecError(
            f"{where} holds {_shown(config)}, expected an object with the model's sizes."
        )
    for path, key, value in _walk(config, where):
        if isinstance(value, float) and not math.isfinite(value):
            raise _wrong(where, path, value, "a finite number")
        # A nested name such as label2id.num_layers is somebody's label, and no size.
        if key in _SIZES and ".label2id." not in f".{path}":
            _check_size(where, path, value, *_SIZES[key])
    _check_kind(config, where)


def needs_remote_code(config: dict[str, Any]) -> bool:
    """Return whether the model's repository ships code of its own for it."""
    return bool(config.get("auto_map"))


def _check_kind(config: dict[str, Any], where: str) -> None:
    auto_map = config.get("auto_map")
    if auto_map is not None and not isinstance(auto_map, dict):
        raise _wrong(where, "auto_map", auto_map, "an object")
    architectures = config.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list)
        and all(isinstance(name, str) and _CLASS_NAME.fullmatch(name) for name in architectures)
    ):
        raise _wrong(where, "architectures", architectures, "a list of class names")
    model_type = config.get("model_type")
    if model_type is None and not auto_map:
        raise SpecError(
            f"{where} has no model_type, so transformers cannot know what to build. "
            "Give the config.json of a transformers model."
        )
    if model_type is not None and not (
        isinstance(model_type, str) and _MODEL_TYPE.fullmatch(model_type)
    ):
        raise _wrong(where, "model_type", model_type, 'a name such as "llama"')


def _walk(config: dict[str, Any], where: str) -> Iterator[tuple[str, str, Any]]:
    """Yield path, key and value of everything inside, without recursion."""
    left: list[tuple[str, int, Any]] = [("", 0, config)]
    while left:
        prefix, depth, container = left.pop()
        if depth >= MAX_DEPTH:
            raise SpecError(
                f"{where} is nested more than {MAX_DEPTH} deep: that is no model config."
            )
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in items:
            path = f"{prefix}{_plain(str(key)[:60])}"
            # Numbers in a list carry no field name; their container's field was checked as such.
            yield path, key if isinstance(key, str) else "", value
            if isinstance(value, dict | list):
                left.append((f"{path}.", depth + 1, value))


def _check_size(where: str, path: str, value: Any, least: int, most: int) -> None:
    if value is None:
        return
    sizes = [value]
    if isinstance(value, list) and value:
        # Swin, OpenELM and Gemma 3n give one size per layer or stage; 0 is a layer without it.
        sizes, least = value, 0
    for size in sizes:
        if type(size) is not int or not least <= size <= most:
            raise _wrong(where, path, value, f"a whole number from {least} to {most:,}")


def _wrong(where: str, path: str, value: Any, expected: str) -> SpecError:
    return SpecError(f"{where}: {path} is {_shown(value)}, expected {expected}.")


def _plain(name: str) -> str:
    """Return a stranger's field name without control characters that a terminal would obey."""
    return name if name.isprintable() else repr(name)


def _shown(value: Any) -> str:
    """Return a value for a message: short, and safe for what Python will not print."""
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
