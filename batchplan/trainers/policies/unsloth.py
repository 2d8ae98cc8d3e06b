"""Unsloth: its own model code and loader under TRL's ``SFTTrainer``."""

from batchplan.trainers.policies.on_transformers import ON_TRANSFORMERS
from batchplan.trainers.policies.rows import ADAPTERS, Default, Policy, built_on

_LOADER = "unsloth models/loader.py, FastLanguageModel.from_pretrained"
_PEFT = "unsloth models/llama.py, FastLlamaModel.get_peft_model"
_CONFIG = "unsloth models/rl.py, _patch_trl_rl_trainers"
_TRAINING = "unsloth_zoo training_utils.py, prepare_model_for_training"

POLICY = Policy(
    trainer="unsloth",
    package="unsloth",
    rows=built_on(
        ON_TRANSFORMERS,
        Default(
            option="micro_batch", value=4, key="per_device_train_batch_size: 4", source=_CONFIG
        ),
        Default(
            option="accum_steps", value=2, key="gradient_accumulation_steps: 2", source=_CONFIG
        ),
        Default(option="method", value="qlora", key="load_in_4bit=True", source=_LOADER),
        Default(option="optimizer", value="adamw-8bit", key="optim: adamw_8bit", source=_CONFIG),
        Default(
            option="numerics",
            value="bf16-autocast",
            key="UNSLOTH_MIXED_PRECISION=float32",
            source=_TRAINING,
        ),
        Default(
            option="numerics",
            value="bf16",
            key="float32_mixed_precision=None",
            source="unsloth models/vision.py, FastBaseModel.post_patch_model",
            when={"method": ("full",), "sharding": ("ddp",)},
            note="Unsloth trains all weights in pure bf16 unless float32_mixed_precision",
        ),
        *(
            Default(
                option="weight_dtype",
                value=half,
                key="dtype=None",
                source=_LOADER,
                when={"method": ADAPTERS, "numerics": (f"{half}-autocast",)},
            )
            for half in ("bf16", "fp16")
        ),
        Default(
            option="norm_dtype",
            value="fp32",
            key="train_layernorms=full_finetuning",
            source=_TRAINING,
            when={"method": ("full",), "sharding": ("ddp",)},
            note="Unsloth keeps fp32 norms in a full fine-tune (training_utils.py)",
        ),
        # "unsloth" also moves the checkpoints to host memory, which we do not model.
        Default(
            option="checkpointing",
            value="full",
            key='use_gradient_checkpointing="unsloth"',
            source=_LOADER,
        ),
        Default(option="reentrant", value=True, key="use_reentrant=True", source=_PEFT),
        Default(
            option="loss",
            value="fused",
            key="unsloth_fused_ce_loss",
            source="unsloth models/llama.py, CausalLM_fast_forward",
        ),
        Default(
            option="adapter_dtype",
            value="fp32",
            key="upcast of lora_A and lora_B",
            source=_TRAINING,
        ),
        Default(
            option="expandable_segments",
            value=True,
            key="PYTORCH_ALLOC_CONF",
            source="unsloth_zoo __init__.py",
        ),
        Default(option="lora_rank", value=16, key="r=16", source=_PEFT),
        Default(
            option="lora_targets",
            value="q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
            key="target_modules",
            source="unsloth models/llama.py, _DEFAULT_TARGET_MODULES",
        ),
        Default(option="lora_dropout", value=0.0, key="lora_dropout=0.0", source=_PEFT),
        Default(
            option="double_quant",
            value=True,
            key="bnb_4bit_use_double_quant=True",
            source="unsloth models/llama.py, FastLlamaModel.from_pretrained",
        ),
    ),
)
