"""Lightning's ``Trainer`` over a module that holds a transformers model."""

from batchplan.trainers.policies.conditions import ZERO_MASTER
from batchplan.trainers.policies.plain import PLAIN
from batchplan.trainers.policies.rows import Default, Policy, built_on

_TRAINER = "lightning pytorch/trainer/trainer.py, Trainer"

POLICY = Policy(
    trainer="lightning",
    package="lightning",
    rows=built_on(
        PLAIN,
        Default(option="accum_steps", value=1, key="accumulate_grad_batches: 1", source=_TRAINER),
        Default(option="sharding", value="ddp", key='strategy: "auto"', source=_TRAINER),
        Default(
            option="sync_each_batch",
            value=True,
            key="block_backward_sync",
            source="lightning pytorch/strategies/parallel.py, ParallelStrategy (DDP only)",
        ),
        Default(
            option="fsdp_version",
            value=1,
            key="strategy: fsdp",
            source="lightning pytorch/strategies/fsdp.py, FSDPStrategy",
        ),
        Default(
            option="zero_buckets",
            value="default",
            key="reduce_bucket_size: 2e8 (DeepSpeed's own 5e8 is nearest)",
            source="lightning pytorch/strategies/deepspeed.py, DeepSpeedStrategy",
        ),
        *ZERO_MASTER,
    ),
)
