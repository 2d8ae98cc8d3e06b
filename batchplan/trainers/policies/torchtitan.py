"""Torchtitan, as its config for Llama 3 8B sets it."""

from batchplan.trainers.policies.plain import PLAIN
from batchplan.trainers.policies.rows import ADAPTERS, Default, Policy, built_on

_CONFIG = "torchtitan models/llama3/config_registry.py, llama3_8b"
_TRAINING = "torchtitan config/configs.py, TrainingConfig"
_FSDP = "torchtitan models/llama3/parallelize.py, parallelize_llama"

POLICY = Policy(
    trainer="torchtitan",
    package="torchtitan",
    rows=built_on(
        PLAIN,
        Default(option="micro_batch", value=1, key="training.local_batch_size: 1", source=_CONFIG),
        Default(
            option="accum_steps", value=1, key="training.global_batch_size: -1", source=_TRAINING
        ),
        Default(
            option="numerics",
            value="bf16-master",
            key="training.dtype float32, mixed_precision_param bfloat16",
            source=_TRAINING,
            note="torchtitan gathers bf16 from fp32 shards",
        ),
        # The frozen base is kept in fp32 as well.
        Default(
            option="numerics",
            value="bf16-autocast",
            key="training.dtype float32",
            source=_TRAINING,
            when={"method": ADAPTERS},
        ),
        Default(option="sharding", value="fsdp-full", key="apply_fsdp_to_decoder", source=_FSDP),
        Default(
            option="optimizer_impl",
            value="fused",
            key='implementation: "fused"',
            source="torchtitan components/optimizer/optimizer.py, OptimizersContainer.Config",
        ),
        # It saves every second matrix product; we leave out every second layer.
        Default(option="checkpointing", value="selective", key="SelectiveAC", source=_CONFIG),
        Default(
            option="reentrant",
            value=False,
            key="checkpoint_wrapper",
            source="torchtitan distributed/activation_checkpoint.py, ActivationCheckpointing",
        ),
        Default(
            option="attention",
            value="sdpa",
            key='attn_backend="flex"',
            source="torchtitan models/llama3/__init__.py, model_registry",
        ),
        Default(
            option="loss",
            value="chunked",
            key="ChunkedLossWrapper(num_chunks=8)",
            source="torchtitan components/loss.py, ChunkedLossWrapper",
        ),
        Default(
            option="sync_each_batch",
            value=True,
            key="reduce-scatter after every pass",
            source=_FSDP,
        ),
        Default(
            option="lora_rank",
            value=8,
            key="LoRAConverter(rank=8)",
            source="torchtitan components/lora.py, LoRAConverter.Config",
        ),
        Default(
            option="lora_targets",
            value="all-linear",
            key="LoRAConverter(target_modules=None)",
            source="torchtitan components/lora.py, LoRAConverter.Config",
        ),
    ),
)
