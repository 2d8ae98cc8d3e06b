"""What a checked config says of its model: class, widths, depth and reach."""

from __future__ import annotations

from typing import Any

from batchplan.spec import ModelInfo

# Where composite models keep the config of their language model.
_LANGUAGE_MODEL = ("text_config", "llm_config", "language_config", "decoder", "thinker_config")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_REACH = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
# Their positions are relative, and their n_positions only tells what they were trained on.
_RELATIVE = {"t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano", "udop"}
# LitGPT's own name; transformers' ``block_size`` is that of a sparse attention.
_LITGPT_REACH = ("block_size",)
# Their first position is pad_token_id + 1, so that many rows of the table are never used.
_OFFSET_BY_PADDING = {
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "data2vec-text",
    "longformer",
    "mpnet",
}


def model_info(
    config: dict[str, Any], *, model_id: str, source: str, revision: str | None = None
) -> ModelInfo:
    """Return the summary of a config that ``check_config`` has accepted."""
    architectures = config.get("architectures") or []
    architecture = architectures[0] if architectures else config.get("model_type")
    language = _language_config(config)
    return ModelInfo(
        id=model_id,
        architecture=architecture or "code of its own",
        source=source,
        revision=revision,
        max_seq_len=_max_seq_len(language),
        hidden_size=_first(language, _HIDDEN),
        num_layers=_num_layers(language),
    )


def _language_config(config: dict[str, Any]) -> dict[str, Any]:
    if _first(config, _HIDDEN) is not None:
        return config
    for name in _LANGUAGE_MODEL:
        if isinstance(nested := config.get(name), dict):
            language = _language_config(nested)
            if _first(language, _HIDDEN) is not None:
                return language
    return config


def _max_seq_len(config: dict[str, Any]) -> int | None:
    model_type = config.get("model_type")
    if model_type in _RELATIVE:
        return None
    reach = _first(config, _LITGPT_REACH if model_type == "litgpt" else _REACH)
    if reach is not None and model_type in _OFFSET_BY_PADDING:
        padding = config.get("pad_token_id", 1)
        unused = padding + 1 if type(padding) is int and 0 <= padding < reach - 1 else 0
        return reach - unused
    return reach


def _num_layers(config: dict[str, Any]) -> int | None:
    """Return all layers: of an encoder-decoder, both stacks."""
    encoder, decoder = (_size(config, f"{half}_layers") for half in ("encoder", "decoder"))
    if encoder is not None and decoder is not None:
        return encoder + decoder
    layers = _first(config, _LAYERS)
    if layers is not None and config.get("model_type") in _RELATIVE:
        second = _size(config, "num_decoder_layers")
        return layers + (layers if second is None else second)
    return layers


def _first(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    sizes = (_size(config, name) for name in names)
    return next((size for size in sizes if size), None)


def _size(config: dict[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if type(value) is int else None
