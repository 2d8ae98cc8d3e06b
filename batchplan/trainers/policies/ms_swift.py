"""Ms-swift: transformers' ``Trainer`` as ``swift sft`` runs it."""

from batchplan.trainers.policies.conditions import autocast_over
from batchplan.trainers.policies.on_transformers import ON_TRANSFORMERS
from batchplan.trainers.policies.rows import FSDP, Default, Policy, built_on

_ARGUMENTS = "swift trainers/arguments.py, TrainArgumentsMixin"
_TUNER = "swift arguments/tuner_args.py, TunerArguments"
_REENTRANT = "swift trainers/mixin.py, SwiftMixin._fix_gradient_checkpointing"

POLICY = Policy(
    trainer="ms-swift",
    package="ms-swift",
    rows=built_on(
        ON_TRANSFORMERS,
        Default(
            option="micro_batch", value=1, key="per_device_train_batch_size: 1", source=_ARGUMENTS
        ),
        Default(
            option="accum_steps",
            value=16,
            key="gradient_accumulation_steps: null fills up 16 sequences",
            source="swift trainers/arguments.py, TrainArgumentsMixin.__post_init__",
            of_a_step=True,
        ),
        Default(
            option="method",
            value="lora",
            key="tuner_type: lora",
            source="swift arguments/base_args/base_args.py, BaseArguments",
        ),
        Default(
            option="numerics",
            value="bf16-autocast",
            key="bf16 follows torch_dtype",
            source="swift arguments/base_args/model_args.py, ModelArguments._init_mixed_precision",
        ),
        *autocast_over(
            "bf16",
            key="torch_dtype: null",
            source="swift model/model_meta.py, get_model_info_meta",
        ),
        Default(
            option="checkpointing",
            value="full",
            key="gradient_checkpointing: true",
            source=_ARGUMENTS,
        ),
        Default(option="reentrant", value=True, key="use_reentrant: null", source=_REENTRANT),
        Default(
            option="reentrant",
            value=False,
            key="DDP on several devices",
            source=_REENTRANT,
            when={"sharding": ("ddp",), "several_devices": (True,)},
        ),
        Default(
            option="reentrant",
            value=False,
            key="fsdp_config.activation_checkpointing",
            source="swift config/fsdp2.json; arguments/sft_args.py, _check_fsdp2_compatibility",
            when={"sharding": FSDP},
        ),
        # Its files say 2e8 elements; DeepSpeed's own 5e8 is the nearest that we can say.
        Default(
            option="zero_buckets",
            value="default",
            key="reduce_bucket_size: 2e8",
            source="swift config/zero1.json, config/zero2.json",
            when={"sharding": ("zero1", "zero2")},
        ),
        Default(option="lora_rank", value=8, key="lora_rank: 8", source=_TUNER),
        Default(
            option="lora_targets",
            value="all-linear",
            key="target_modules: [all-linear]",
            source=_TUNER,
        ),
        Default(option="lora_dropout", value=0.05, key="lora_dropout: 0.05", source=_TUNER),
        Default(
            option="double_quant",
            value=True,
            key="bnb_4bit_use_double_quant: true",
            source="swift arguments/base_args/quant_args.py, QuantizeArguments",
        ),
    ),
)
