"""llm-analysis: states, gradients and activations per device."""

import json

from llm_analysis.analysis import ActivationRecomputation, DSZeRO, LLMAnalysis
from llm_analysis.config import (
    ModelConfig,
    ParallelismConfig,
    get_dtype_config_by_name,
    get_gpu_config_by_name,
)
from protocol import choose, full_only, serve

_ZERO = {"ddp": DSZeRO.NONE, "fsdp-grad-op": DSZeRO.STAGE_2, "fsdp-full": DSZeRO.STAGE_3}
_MASTERS = {"bf16": 0, "bf16-master": 4}


def ask(question):
    """Return the sum of its figures for one device."""
    full_only(question)
    config = question["config"]
    heads = config["num_attention_heads"]
    inner = config.get("intermediate_size") or 4 * config["hidden_size"]
    model = ModelConfig(
        name=json.dumps(config, sort_keys=True)[:40],
        num_layers=config["num_hidden_layers"],
        n_head=heads,
        hidden_dim=config["hidden_size"],
        vocab_size=config["vocab_size"],
        max_seq_len=max(question["seq_len"], config.get("max_position_embeddings", 0)),
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        ffn_embed_dim=inner,
        expansion_ratio=inner / config["hidden_size"],
        model_type=config["model_type"],
    )
    analysis = LLMAnalysis(
        model,
        get_gpu_config_by_name("a100-sxm-80gb"),
        get_dtype_config_by_name("w16a16e16"),
        ParallelismConfig(dp_size=question["devices"]),
    )
    found = analysis.training(
        batch_size_per_gpu=question["micro_batch"],
        gradient_accumulation_steps=question["accum_steps"],
        seq_len=question["seq_len"],
        activation_recomputation=ActivationRecomputation.FULL
        if question["checkpointing"] == "full"
        else ActivationRecomputation.NONE,
        ds_zero=choose(_ZERO, question["sharding"], "sharding"),
        master_weights_dtype_bytes=choose(_MASTERS, question["numerics"], "numerics"),
        other_op_bytes=4 if question["numerics"] == "bf16" else 8,
        flash_attn=question["attention"] != "eager",
        mlp_gated_linear_units=config["model_type"] not in ("gpt2", "gpt_neox", "falcon", "phi"),
    )
    return sum(
        found[name]
        for name in (
            "weight_memory_per_gpu",
            "gradient_memory_per_gpu",
            "optimizer_state_memory_per_gpu",
            "activation_memory_per_gpu",
        )
    )


serve(ask)
