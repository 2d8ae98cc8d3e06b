"""A loop of the user's own that ``Accelerator`` prepares, with its own plugins' defaults."""

from batchplan.trainers.policies.conditions import FP32_OUTPUTS, FSDP_FP32_SHARDS, ZERO_MASTER
from batchplan.trainers.policies.plain import PLAIN
from batchplan.trainers.policies.rows import Default, Policy, built_on

POLICY = Policy(
    trainer="accelerate",
    package="accelerate",
    rows=built_on(
        PLAIN,
        Default(
            option="accum_steps",
            value=1,
            key="Accelerator(gradient_accumulation_steps=1)",
            source="accelerate accelerator.py, Accelerator",
        ),
        Default(
            option="sync_each_batch",
            value=False,
            key="GradientAccumulationPlugin(sync_each_batch=False)",
            source="accelerate utils/dataclasses.py, GradientAccumulationPlugin",
        ),
        Default(
            option="fsdp_version",
            value=1,
            key="fsdp_version",
            source="accelerate utils/dataclasses.py, FullyShardedDataParallelPlugin",
        ),
        Default(
            option="bucket_view",
            value=False,
            key="DistributedDataParallelKwargs(gradient_as_bucket_view=False)",
            source="accelerate utils/dataclasses.py, DistributedDataParallelKwargs",
        ),
        Default(
            option="zero_buckets",
            value="default",
            key="deepspeed_config without buckets",
            source="accelerate utils/dataclasses.py, DeepSpeedPlugin.__post_init__",
        ),
        *FP32_OUTPUTS,
        *FSDP_FP32_SHARDS,
        *ZERO_MASTER,
    ),
)
