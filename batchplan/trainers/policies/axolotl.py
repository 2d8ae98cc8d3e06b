"""Axolotl: transformers' ``Trainer`` under a YAML of its own."""

from batchplan.trainers.policies.conditions import autocast_over
from batchplan.trainers.policies.on_transformers import ON_TRANSFORMERS
from batchplan.trainers.policies.rows import FSDP, Default, Policy, built_on

_TRAINING = "axolotl utils/schemas/training.py, HyperparametersConfig"
_CONFIG = "axolotl utils/schemas/config.py, AxolotlInputConfig"
_PEFT = "axolotl utils/schemas/peft.py, LoraConfig"
_LOADING = "axolotl loaders/model.py, ModelLoader (dtype=cfg.torch_dtype)"

POLICY = Policy(
    trainer="axolotl",
    package="axolotl",
    rows=built_on(
        ON_TRANSFORMERS,
        Default(option="micro_batch", value=1, key="micro_batch_size: 1", source=_TRAINING),
        Default(
            option="accum_steps", value=1, key="gradient_accumulation_steps: 1", source=_TRAINING
        ),
        Default(option="method", value="full", key="adapter: null", source=_PEFT),
        Default(
            option="numerics",
            value="bf16-autocast",
            key="bf16: auto",
            source="axolotl utils/config/__init__.py, resolve_dtype",
        ),
        *autocast_over("bf16", key="bf16: auto", source=_LOADING),
        *autocast_over("fp16", key="fp16: true", source=_LOADING, numerics=("fp16-autocast",)),
        Default(
            option="numerics",
            value="bf16",
            key="fsdp_config",
            source="axolotl monkeypatch/accelerate/fsdp2.py, fsdp2_prepare_model",
            when={"method": ("full",), "sharding": FSDP, "numerics": ("bf16-master",)},
            note="axolotl leaves FSDP's shards in bf16, with no fp32 copies (fsdp2.py)",
        ),
        Default(
            option="optimizer_impl",
            value="fused",
            key="optimizer: adamw_torch_fused",
            source=_TRAINING,
        ),
        Default(
            option="checkpointing",
            value="none",
            key="gradient_checkpointing: false",
            source=_CONFIG,
        ),
        Default(
            option="reentrant",
            value=False,
            key="gradient_checkpointing_kwargs",
            source="axolotl utils/config/__init__.py, normalize_config",
        ),
        Default(
            option="reentrant",
            value=True,
            key="deepspeed: ZeRO-3",
            source="axolotl utils/config/__init__.py, normalize_config",
            when={"sharding": ("zero3",)},
            note="axolotl checkpoints reentrantly under ZeRO-3 (utils/config)",
        ),
        # With flash attention, an adapter or FSDP the loader casts them back to bf16.
        Default(
            option="norm_dtype",
            value="fp32",
            key="attn_implementation: sdpa or eager",
            source="axolotl loaders/model.py, ModelLoader._configure_embedding_dtypes",
            when={"method": ("full",), "sharding": ("ddp",), "attention": ("sdpa", "eager")},
            note="axolotl casts norms and embeddings to fp32 (loaders/model.py)",
        ),
        Default(
            option="lora_rank", value=8, key="lora_r (must be given; peft's is 8)", source=_PEFT
        ),
        Default(option="lora_dropout", value=0.0, key="lora_dropout: 0.0", source=_PEFT),
        Default(
            option="double_quant",
            value=True,
            key="bnb_4bit_use_double_quant: true",
            source="axolotl loaders/model.py, ModelLoader._set_quantization_config",
        ),
        # Everywhere else the loader casts back what it, or peft, has made fp32.
        Default(
            option="frozen_upcast",
            value=True,
            key="embeddings_skip_upcast: null",
            source="axolotl loaders/model.py, ModelLoader._configure_embedding_dtypes",
            when={"method": ("qlora",), "sharding": FSDP},
            note="axolotl makes what is not 4-bit fp32 under FSDP (loaders/model.py)",
        ),
        Default(
            option="expandable_segments",
            value=True,
            key="PYTORCH_ALLOC_CONF",
            source="axolotl utils/__init__.py, set_pytorch_cuda_alloc_conf",
        ),
    ),
)
