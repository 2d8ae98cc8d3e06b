"""Torchtune's recipes, as the configs for Llama 3.1 8B set them."""

from batchplan.trainers.policies.plain import PLAIN
from batchplan.trainers.policies.rows import ADAPTERS, Default, Policy, built_on

_FULL = "torchtune recipes/configs/llama3_1/8B_full.yaml"
_FULL_SINGLE = "torchtune recipes/configs/llama3_1/8B_full_single_device.yaml"
_LORA = "torchtune recipes/configs/llama3_1/8B_lora.yaml"
_QLORA = "torchtune recipes/configs/llama3_1/8B_qlora_single_device.yaml"
_LORA_SINGLE = "torchtune recipes/configs/llama3_1/8B_lora_single_device.yaml"

POLICY = Policy(
    trainer="torchtune",
    package="torchtune",
    rows=built_on(
        PLAIN,
        Default(option="micro_batch", value=2, key="batch_size: 2", source=_FULL),
        Default(option="accum_steps", value=1, key="gradient_accumulation_steps: 1", source=_FULL),
        Default(
            option="accum_steps",
            value=8,
            key="gradient_accumulation_steps: 8",
            source=_LORA,
            when={"method": ADAPTERS},
        ),
        Default(option="numerics", value="bf16", key="dtype: bf16", source=_FULL),
        Default(option="optimizer_impl", value="fused", key="optimizer.fused: true", source=_FULL),
        # It also steps inside the backward (optimizer_in_bwd), which we do not model.
        Default(
            option="optimizer",
            value="paged-adamw-8bit",
            key="bitsandbytes.optim.PagedAdamW8bit",
            source=_FULL_SINGLE,
            when={"method": ("full",), "several_devices": (False,)},
            note="torchtune takes a paged 8-bit AdamW on one device (8B_full_single_device.yaml)",
        ),
        Default(
            option="sharding",
            value="fsdp-full",
            key="full_finetune_distributed, lora_finetune_distributed",
            source="torchtune training/_distributed.py, shard_model",
            when={"several_devices": (True,)},
            note="torchtune shards on several devices (shard_model)",
        ),
        Default(
            option="checkpointing",
            value="full",
            key="enable_activation_checkpointing: true",
            source=_FULL,
        ),
        Default(
            option="checkpointing",
            value="none",
            key="enable_activation_checkpointing: false",
            source=_LORA,
            when={"method": ("lora",), "several_devices": (True,)},
        ),
        Default(
            option="reentrant",
            value=False,
            key="CheckpointImpl.NO_REENTRANT",
            source="torchtune training/_activation_checkpointing.py, set_activation_checkpointing",
        ),
        # The head's output comes in pieces, but all of them are alive at once.
        Default(
            option="loss",
            value="standard",
            key="CEWithChunkedOutputLoss",
            source="torchtune modules/transformer.py, TransformerDecoder.chunked_output",
        ),
        Default(
            option="attention",
            value="sdpa",
            key="scaled_dot_product_attention",
            source="torchtune modules/attention_utils.py, _sdpa_or_flex_attention",
        ),
        Default(
            option="sync_each_batch",
            value=True,
            key="no set_requires_gradient_sync",
            source="torchtune recipes/full_finetune_distributed.py, train",
        ),
        Default(
            option="adapter_dtype",
            value="bf16",
            key="dtype: bf16",
            source="torchtune recipes/lora_finetune_single_device.py, _setup_model",
        ),
        Default(
            option="adapter_dtype",
            value=None,
            key="dtype: fp32",
            source="torchtune recipes/lora_finetune_single_device.py, _setup_model",
            when={"numerics": ("fp32",)},
        ),
        Default(option="lora_rank", value=8, key="lora_rank: 8", source=_LORA),
        Default(
            option="lora_targets",
            value="q_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
            key="lora_attn_modules, apply_lora_to_mlp",
            source=_LORA_SINGLE,
        ),
        Default(option="lora_dropout", value=0.0, key="lora_dropout: 0.0", source=_QLORA),
        Default(
            option="double_quant",
            value=True,
            key="NF4Tensor's 8-bit scalers",
            source="torchtune modules/peft/lora.py, LoRALinear (torchao to_nf4)",
        ),
    ),
)
