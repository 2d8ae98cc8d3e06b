"""Which modules peft puts adapters on where its user names none."""

from __future__ import annotations

_EVERY_OTHER = "all-linear"
"""Peft refuses to choose for these families; this is what its documentation recommends."""

# Source: peft 0.21.2, utils/constants.py, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.
# Gemma 4's entry is a pattern over whole names there.
_FAMILIES = {
    "q,v": "t5 mt5",
    "q_proj,v_proj": (
        "bart opt gptj gpt_neo llama llama4 mistral mixtral stablelm gemma gemma2 "
        "gemma3_text qwen2 qwen3 gemma4"
    ),
    "c_attn": "gpt2 gpt_bigcode",
    "query_key_value": "bloom gpt_neox chatglm RefinedWebModel RefinedWeb falcon",
    "q,v,q_proj,v_proj": "blip-2",
    "query,value": "bert roberta xlm-roberta electra layoutlm",
    "query_proj,value_proj": "deberta-v2",
    "in_proj": "deberta",
    "Wqkv": "mpt",
    "c_proj,c_attn": "btlm",
    "qkv_proj": "codegen",
    "q_proj,v_proj,fc1,fc2": "phi",
    "q_proj,k_proj,v_proj,o_proj": "nemotron_h",
    "key,value,receptance,output": "rwkv",
    "r_proj,k_proj,v_proj,o_proj,key,value": "rwkv7",
}


def peft_targets(model_type: str) -> str:
    """Return the names that peft picks for a family, joined by commas.

    >>> peft_targets("llama"), peft_targets("gpt2"), peft_targets("olmo3")
    ('q_proj,v_proj', 'c_attn', 'all-linear')
    """
    found = (names for names, types in _FAMILIES.items() if model_type in types.split())
    return next(found, _EVERY_OTHER)
