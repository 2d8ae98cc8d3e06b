"""LitGPT's ``finetune_full`` and ``finetune_lora``."""

from batchplan.trainers.policies.plain import PLAIN
from batchplan.trainers.policies.rows import ADAPTERS, Default, Policy, built_on

_SETUP = "litgpt finetune/lora.py, setup"
_FULL = "litgpt finetune/full.py, setup"
_SEVERAL = {"several_devices": (True,)}

POLICY = Policy(
    trainer="litgpt",
    package="litgpt",
    rows=built_on(
        PLAIN,
        Default(option="micro_batch", value=1, key="train.micro_batch_size: 1", source=_FULL),
        Default(
            option="accum_steps",
            value=16,
            key="train.global_batch_size: 16",
            source=_FULL,
            of_a_step=True,
        ),
        Default(
            option="numerics",
            value="bf16-autocast",
            key="precision: null is bf16-mixed",
            source="litgpt utils.py, get_default_supported_precision",
        ),
        Default(
            option="numerics",
            value="bf16",
            key="quantize: bnb.nf4, precision: bf16-true",
            source=_SETUP,
            when={"method": ("qlora",)},
            note="LitGPT quantises only without mixed precision (finetune/lora.py)",
        ),
        Default(
            option="sharding",
            value="fsdp-full",
            key="FSDPStrategy, ModelParallelStrategy",
            source=_FULL,
            when=_SEVERAL,
            note="LitGPT shards on several devices (finetune/full.py)",
        ),
        Default(
            option="numerics",
            value="bf16-master",
            key="FSDPPrecision(bf16-mixed)",
            source="lightning fabric/plugins/precision/fsdp.py, FSDPPrecision",
            when={"method": ("full",), "sharding": ("fsdp-full",), "numerics": ("bf16-autocast",)},
            note="Lightning gathers bf16 from fp32 shards (precision/fsdp.py)",
        ),
        Default(option="checkpointing", value="none", key="one device: none", source=_FULL),
        Default(
            option="checkpointing",
            value="full",
            key="activation_checkpointing_policy={Block}",
            source=_FULL,
            when=_SEVERAL,
            note="LitGPT checkpoints every block on several devices",
        ),
        Default(
            option="fsdp_version",
            value=1,
            key="FSDPStrategy",
            source="lightning fabric/strategies/fsdp.py, FSDPStrategy",
        ),
        Default(
            option="fsdp_version",
            value=2,
            key="ModelParallelStrategy(parallelize_fn)",
            source="litgpt finetune/lora.py, parallelize_fn",
            when={"method": ("lora",)},
        ),
        Default(
            option="reentrant",
            value=False,
            key="checkpoint_wrapper",
            source="lightning fabric/strategies/fsdp.py, _setup_activation_checkpointing",
        ),
        # finetune_lora splits the head's output by 128 tokens, but keeps every piece.
        Default(
            option="loss",
            value="standard",
            key="chunked_cross_entropy(chunk_size=128)",
            source="litgpt utils.py, chunked_cross_entropy",
        ),
        Default(
            option="attention",
            value="sdpa",
            key="scaled_dot_product_attention",
            source="litgpt model.py, CausalSelfAttention.scaled_dot_product_attention",
        ),
        Default(
            option="fp32_outputs",
            value=True,
            key="precision.convert_output",
            source="lightning fabric/wrappers.py, _FabricModule.forward",
        ),
        Default(
            option="optimizer_impl",
            value="foreach",
            key="optimizer: AdamW",
            source="litgpt utils.py, instantiate_torch_optimizer",
        ),
        Default(
            option="optimizer_impl",
            value="for-loop",
            key="optimizer: AdamW over DTensors",
            source="torch optim/optimizer.py, _default_to_fused_or_foreach",
            when={"method": ("lora",), "sharding": ("fsdp-full",)},
        ),
        # In place, one kernel a tensor, as torch's fused AdamW.
        Default(
            option="optimizer_impl",
            value="fused",
            key="bitsandbytes.optim.PagedAdamW",
            source="litgpt utils.py, instantiate_bnb_optimizer",
            when={"method": ("qlora",)},
        ),
        Default(
            option="sync_each_batch",
            value=False,
            key="fabric.no_backward_sync",
            source="litgpt finetune/full.py, fit",
        ),
        *(
            Default(
                option="adapter_dtype",
                value=dtype,
                key=f"precision: {precision}",
                source="lightning fabric/plugins/precision/half.py, HalfPrecision; bitsandbytes.py",
                when={"method": ADAPTERS, "numerics": (dtype,)},
                note="LitGPT's adapters have the dtype of --precision where it is not mixed",
            )
            for dtype, precision in (("bf16", "bf16-true"), ("fp16", "16-true"))
        ),
        Default(option="lora_rank", value=8, key="lora_r: 8", source=_SETUP),
        Default(
            option="lora_targets",
            value="q_proj,v_proj",
            key="lora_query, lora_value",
            source=_SETUP,
        ),
        Default(option="lora_dropout", value=0.05, key="lora_dropout: 0.05", source=_SETUP),
        Default(option="double_quant", value=False, key="bnb.nf4 (not -dq)", source=_SETUP),
    ),
)
