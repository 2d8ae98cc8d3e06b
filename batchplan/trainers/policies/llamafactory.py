"""LLaMA-Factory: transformers' ``Trainer`` under a YAML of its own."""

from batchplan.trainers.policies.on_transformers import ON_TRANSFORMERS
from batchplan.trainers.policies.rows import (
    ADAPTERS,
    AUTOCAST,
    CHECKPOINT,
    FSDP,
    ZERO,
    Default,
    Policy,
    built_on,
)

_MODEL = "llamafactory hparams/model_args.py, ModelArguments"
_TUNING = "llamafactory hparams/finetuning_args.py, FinetuningArguments"
_CHECKPOINTING = "llamafactory model/model_utils/checkpointing.py, prepare_model_for_training"
_UPCAST = "llamafactory model/adapter.py, init_adapter"

POLICY = Policy(
    trainer="llamafactory",
    package="llamafactory",
    rows=built_on(
        ON_TRANSFORMERS,
        Default(option="method", value="lora", key="finetuning_type: lora", source=_TUNING),
        Default(
            option="numerics",
            value=CHECKPOINT,
            key="bf16: false; torch_dtype auto",
            source="llamafactory model/loader.py, load_model",
        ),
        Default(
            option="numerics",
            value="fp32",
            key="pure_bf16: false",
            source=_UPCAST,
            when={"method": ("full",), "sharding": ("ddp", *FSDP)},
            note="LLaMA-Factory casts what trains to fp32 unless pure_bf16 (model/adapter.py)",
        ),
        # Adapters' base stays as it was saved; nearly every checkpoint is bf16.
        Default(
            option="weight_dtype",
            value="bf16",
            key="torch_dtype auto",
            source="llamafactory model/loader.py, load_model",
            when={"method": ADAPTERS, "numerics": AUTOCAST},
        ),
        Default(
            option="checkpointing",
            value="full",
            key="disable_gradient_checkpointing: false",
            source=_CHECKPOINTING,
        ),
        Default(option="reentrant", value=True, key="use_reentrant_gc: true", source=_MODEL),
        Default(
            option="reentrant",
            value=False,
            key="FSDP2",
            source=_CHECKPOINTING,
            when={"sharding": FSDP},
        ),
        Default(option="attention", value="sdpa", key="flash_attn: auto", source=_MODEL),
        Default(option="loss", value="standard", key="enable_liger_kernel: false", source=_MODEL),
        Default(
            option="adapter_dtype",
            value=None,
            key="pure_bf16: false, so fp32",
            source=_UPCAST,
        ),
        Default(option="norm_dtype", value=None, key="upcast_layernorm: false", source=_MODEL),
        Default(option="lora_rank", value=8, key="lora_rank: 8", source=_TUNING),
        Default(option="lora_targets", value="all-linear", key="lora_target: all", source=_TUNING),
        Default(option="lora_dropout", value=0.0, key="lora_dropout: 0.0", source=_TUNING),
        Default(option="double_quant", value=True, key="double_quantization: true", source=_MODEL),
        Default(
            option="expandable_segments",
            value=True,
            key="OPTIM_TORCH=1",
            source="llamafactory launcher.py, launch",
            when={"several_devices": (True,), "sharding": ("ddp", *ZERO)},
            note="LLaMA-Factory's launcher sets expandable_segments (launcher.py)",
        ),
    ),
)
