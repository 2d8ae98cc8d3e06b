"""What a training loop does by itself where no library decides: torch's and peft's defaults."""

from __future__ import annotations

from batchplan.trainers.policies.rows import CHECKPOINT, PEFT_TARGETS, Default, Versions

_TRANSFORMERS_5 = (Versions(package="transformers", since=(5,)),)
_TRANSFORMERS_4 = (Versions(package="transformers", before=(5,)),)
_LOADING = "transformers modeling_utils.py, PreTrainedModel.from_pretrained"
_LORA = "peft tuners/lora/config.py, LoraConfig"
_OURS = "no library sets it"

LOADED_BY_TRANSFORMERS = (
    Default(
        option="numerics",
        value=CHECKPOINT,
        key='from_pretrained(dtype="auto")',
        source=_LOADING,
        versions=_TRANSFORMERS_5,
    ),
    Default(
        option="numerics",
        value="fp32",
        key="from_pretrained(torch_dtype=None)",
        source=_LOADING,
        versions=_TRANSFORMERS_4,
    ),
)

PLAIN = (
    Default(
        option="micro_batch",
        value=1,
        key="DataLoader(batch_size=1)",
        source="torch utils/data/dataloader.py, DataLoader",
    ),
    Default(option="accum_steps", value=1, key="one pass a step", source=_OURS),
    Default(option="method", value="full", key="model", source=_OURS),
    *LOADED_BY_TRANSFORMERS,
    Default(option="weight_dtype", value=None, key="as loaded", source=_OURS),
    Default(option="grad_dtype", value=None, key="as the weights", source=_OURS),
    Default(option="optimizer_dtype", value=None, key="as the weights", source=_OURS),
    Default(option="master_weights", value=None, key="as numerics", source=_OURS),
    Default(option="optimizer", value="adamw", key="torch.optim.AdamW", source=_OURS),
    Default(
        option="optimizer_impl",
        value="foreach",
        key="AdamW(foreach=None, fused=None)",
        source="torch optim/optimizer.py, _default_to_fused_or_foreach",
    ),
    Default(option="checkpointing", value="none", key="none", source=_OURS),
    Default(
        option="reentrant",
        value=False,
        key="gradient_checkpointing_enable()",
        source="transformers modeling_utils.py, gradient_checkpointing_enable",
        versions=_TRANSFORMERS_5,
    ),
    Default(
        option="reentrant",
        value=True,
        key="gradient_checkpointing_enable()",
        source="transformers modeling_utils.py, gradient_checkpointing_enable",
        versions=_TRANSFORMERS_4,
    ),
    Default(
        option="attention",
        value="sdpa",
        key="attn_implementation",
        source="transformers modeling_utils.py, _check_and_adjust_attn_implementation",
    ),
    Default(
        option="loss",
        value="standard",
        key="model(labels=...)",
        source="transformers loss/loss_utils.py, ForCausalLMLoss",
    ),
    Default(option="sharding", value="ddp", key="DistributedDataParallel", source=_OURS),
    Default(option="offload", value="none", key="none", source=_OURS),
    Default(option="sync_each_batch", value=True, key="no no_sync", source=_OURS),
    Default(
        option="fsdp_version",
        value=2,
        key="fully_shard",
        source="torch distributed/fsdp/_fully_shard",
    ),
    Default(
        option="bucket_view",
        value=False,
        key="gradient_as_bucket_view",
        source="torch nn/parallel/distributed.py, DistributedDataParallel",
    ),
    Default(
        option="zero_buckets",
        value="default",
        key="reduce_bucket_size 5e8",
        source="deepspeed runtime/zero/config.py, DeepSpeedZeroConfig",
    ),
    Default(option="fp32_outputs", value=False, key="none", source=_OURS),
    Default(
        option="adapter_dtype",
        value=None,
        key="autocast_adapter_dtype=True: fp32",
        source="peft tuners/tuners_utils.py, cast_adapter_dtype",
    ),
    Default(
        option="frozen_upcast",
        value=False,
        key="prepare_model_for_kbit_training is not called",
        source="peft utils/other.py, prepare_model_for_kbit_training",
    ),
    Default(option="norm_dtype", value=None, key="as the other weights", source=_OURS),
    Default(option="lora_rank", value=8, key="r", source=_LORA),
    Default(
        option="lora_targets",
        value=PEFT_TARGETS,
        key="target_modules=None",
        source="peft utils/constants.py, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
    ),
    Default(option="lora_dropout", value=0.0, key="lora_dropout", source=_LORA),
    Default(
        option="double_quant",
        value=False,
        key="bnb_4bit_use_double_quant",
        source="transformers utils/quantization_config.py, BitsAndBytesConfig",
    ),
    Default(
        option="expandable_segments",
        value=False,
        key="PYTORCH_CUDA_ALLOC_CONF",
        source="torch c10/cuda/CUDAAllocatorConfig.h",
    ),
)
