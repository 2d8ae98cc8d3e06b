"""Transformers' ``Trainer``, which several trainers are built on."""

from __future__ import annotations

from batchplan.trainers.policies.conditions import FP32_OUTPUTS, FSDP_FP32_SHARDS, ZERO_MASTER
from batchplan.trainers.policies.plain import PLAIN
from batchplan.trainers.policies.rows import Default, Versions, built_on

_ARGUMENTS = "transformers training_args.py, TrainingArguments"
_FUSED = Versions(package="transformers", since=(4, 54))
_FOREACH = Versions(package="transformers", before=(4, 54))


def _optim(
    value: str, transformers: Versions, *, since: tuple[int, ...], before: tuple[int, ...]
) -> Default:
    return Default(
        option="optimizer_impl",
        value=value,
        key="optim: adamw_torch_fused" if value == "fused" else "optim: adamw_torch",
        source=_ARGUMENTS,
        versions=(transformers, Versions(package="torch", since=since, before=before)),
    )


ON_TRANSFORMERS = built_on(
    PLAIN,
    Default(option="micro_batch", value=8, key="per_device_train_batch_size: 8", source=_ARGUMENTS),
    Default(option="accum_steps", value=1, key="gradient_accumulation_steps: 1", source=_ARGUMENTS),
    Default(option="optimizer", value="adamw", key="optim", source=_ARGUMENTS),
    _optim("fused", _FUSED, since=(2, 8), before=(10**6,)),
    _optim("foreach", _FUSED, since=(0,), before=(2, 8)),
    _optim("foreach", _FOREACH, since=(0,), before=(10**6,)),
    Default(option="checkpointing", value="none", key="gradient_checkpointing", source=_ARGUMENTS),
    Default(option="loss", value="standard", key="use_liger_kernel", source=_ARGUMENTS),
    Default(option="sharding", value="ddp", key="fsdp, deepspeed", source=_ARGUMENTS),
    Default(option="offload", value="none", key="fsdp_config, deepspeed", source=_ARGUMENTS),
    Default(
        option="sync_each_batch",
        value=False,
        key="accelerator_config.gradient_accumulation_kwargs",
        source="transformers trainer.py, Trainer (no_sync on all but the last pass)",
    ),
    Default(
        option="fsdp_version",
        value=1,
        key="fsdp_config.version",
        source=_ARGUMENTS,
        versions=(Versions(package="transformers", before=(5, 10)),),
    ),
    Default(
        option="fsdp_version",
        value=2,
        key="fsdp_config.version",
        source=_ARGUMENTS,
        versions=(Versions(package="transformers", since=(5, 10)),),
    ),
    Default(
        option="zero_buckets",
        value="auto",
        key='reduce_bucket_size: "auto"',
        source="transformers integrations/deepspeed.py, trainer_config_finalize",
    ),
    *FP32_OUTPUTS,
    *FSDP_FP32_SHARDS,
    *ZERO_MASTER,
)
