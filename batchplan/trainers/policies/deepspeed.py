"""A loop of the user's own that ``deepspeed.initialize`` runs."""

from batchplan.trainers.policies.conditions import ZERO_MASTER
from batchplan.trainers.policies.plain import PLAIN
from batchplan.trainers.policies.rows import Default, Policy, built_on

_ZERO = "deepspeed runtime/zero/config.py, DeepSpeedZeroConfig"

POLICY = Policy(
    trainer="deepspeed",
    package="deepspeed",
    rows=built_on(
        PLAIN,
        Default(
            option="micro_batch",
            value=1,
            key="train_micro_batch_size_per_gpu (must be given)",
            source="deepspeed runtime/config.py, DeepSpeedConfig._batch_assertion",
        ),
        Default(
            option="accum_steps",
            value=1,
            key="gradient_accumulation_steps",
            source="deepspeed runtime/config.py, DeepSpeedConfig._set_batch_related_parameters",
        ),
        Default(
            option="optimizer_impl",
            value="fused",
            key='optimizer: {"type": "AdamW"}',
            source="deepspeed runtime/engine.py, _configure_basic_optimizer (FusedAdam)",
        ),
        Default(option="sharding", value="ddp", key="zero_optimization.stage: 0", source=_ZERO),
        Default(option="offload", value="none", key="offload_optimizer: null", source=_ZERO),
        Default(
            option="sync_each_batch",
            value=True,
            key="ZeRO reduces after every backward",
            source="deepspeed runtime/engine.py, DeepSpeedEngine.no_sync",
        ),
        *ZERO_MASTER,
    ),
)
