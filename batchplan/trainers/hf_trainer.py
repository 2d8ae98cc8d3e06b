"""Transformers ``Trainer``: a TrainingArguments YAML, and DeepSpeed's JSON beside it.

Key names are those that every release from 4.46 on accepts. Read it back with
``HfArgumentParser(TrainingArguments).parse_yaml_file``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from batchplan.spec import (
    Checkpointing,
    Loss,
    Method,
    Numerics,
    Offload,
    Optimizer,
    OptimizerImpl,
    Recipe,
    Sharding,
)
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.hf_comments import how_to_run
from batchplan.trainers.realise import FSDP, ZERO
from batchplan.trainers.summary import summary
from batchplan.trainers.yaml_text import Setting, to_yaml
from batchplan.units import format_beta

# Source: transformers.training_args.OptimizerNames.
_OPTIM: dict[object, str] = {
    (Optimizer.ADAMW, OptimizerImpl.FUSED): "adamw_torch_fused",
    (Optimizer.ADAMW, OptimizerImpl.FOREACH): "adamw_torch",
    Optimizer.ADAMW_8BIT: "adamw_bnb_8bit",
    Optimizer.PAGED_ADAMW_8BIT: "paged_adamw_8bit",
    Optimizer.ADAFACTOR: "adafactor",
    Optimizer.SGD: "sgd",
    Optimizer.SGD_MOMENTUM: "sgd",
    Optimizer.LION: "lion_32bit",
}
_AUTOCAST = {
    # numerics: (bf16, fp16); the dtype the weights are loaded in decides the rest
    Numerics.FP32: (False, False),
    Numerics.BF16: (False, False),
    Numerics.FP16: (False, False),
    Numerics.BF16_AUTOCAST: (True, False),
    Numerics.FP16_AUTOCAST: (False, True),
    Numerics.BF16_MASTER: (True, False),
    Numerics.FP16_MASTER: (False, True),
}
_STAGE = {Sharding.ZERO1: 1, Sharding.ZERO2: 2, Sharding.ZERO3: 3}


def emit(job: Job) -> tuple[EmittedFile, ...]:
    """Return the TrainingArguments YAML of a plan, and the DeepSpeed JSON it names if any."""
    recipe = job.plan.recipe
    deepspeed = f"{job.stem}.ds.json" if recipe.sharding in ZERO else None
    name = f"{job.stem}.yaml"
    header = [*summary(job), "", *how_to_run(job, name)]
    main = EmittedFile(name=name, text=to_yaml(header, _settings(job, deepspeed)))
    if deepspeed is None:
        return (main,)
    text = json.dumps(_deepspeed(recipe), indent=2) + "\n"
    return main, EmittedFile(name=deepspeed, text=text)


def _settings(job: Job, deepspeed: str | None) -> Iterator[Setting]:
    plan, recipe, batch = job.plan, job.plan.recipe, job.plan.batch
    yield Setting("output_dir", "out")
    yield Setting("per_device_train_batch_size", batch.micro_batch)
    whole = f"x {batch.micro_batch} x {batch.num_ranks} devices = {batch.global_batch_size:,}"
    yield Setting("gradient_accumulation_steps", batch.accum_steps, f"{whole} sequences a step")
    if batch.num_ranks > 1:
        why = "every token weighs the same, whichever device it is on"
        yield Setting("average_tokens_across_devices", True, why)  # noqa: FBT003
    rate = _rounded(plan.learning_rate.value)
    if job.epoch_steps is not None:
        number = int(job.epochs) if job.epochs == int(job.epochs) else job.epochs
        each = "" if number == 1 else " each"
        yield Setting("num_train_epochs", number, f"{job.epoch_steps:,} optimizer steps{each}")
    yield Setting("learning_rate", rate, f"{plan.learning_rate.rule} rule")
    yield Setting("lr_scheduler_type", "cosine")
    if plan.learning_rate.warmup_steps is not None:
        yield Setting("warmup_steps", int(plan.learning_rate.warmup_steps), "optimizer steps")
    yield from _optimizer(job, in_deepspeed=deepspeed is not None and _offloads(recipe))
    bf16, fp16 = _autocast(recipe)
    yield Setting("bf16", bf16, f"numerics {recipe.numerics.value}")
    yield Setting("fp16", fp16)
    yield from _checkpointing(recipe)
    if recipe.loss is Loss.FUSED:
        yield Setting("use_liger_kernel", True, "fused loss: needs liger-kernel")  # noqa: FBT003
    if recipe.sharding in FSDP:
        yield from _fsdp(job)
    if deepspeed is not None:
        yield Setting("deepspeed", deepspeed, f"ZeRO-{_STAGE[recipe.sharding]}; start beside it")


def _optimizer(job: Job, *, in_deepspeed: bool) -> Iterator[Setting]:
    recipe = job.plan.recipe
    if not in_deepspeed:
        name = _OPTIM.get(recipe.optimizer) or _OPTIM[recipe.optimizer, recipe.optimizer_impl]
        yield Setting("optim", name)
    if recipe.optimizer is Optimizer.SGD_MOMENTUM:
        yield Setting("optim_args", "momentum=0.9")
    beta2 = job.plan.learning_rate.beta2
    if beta2 is not None and beta2 < 1:  # torch refuses 1, which tiny batches may come to
        yield Setting("adam_beta2", float(format_beta(beta2)), "half-life in tokens kept")


def _autocast(recipe: Recipe) -> tuple[bool, bool]:
    """Return bf16 and fp16; fp32 adapters over an fp16 base need fp16's loss scaling."""
    if recipe.method is not Method.FULL and recipe.numerics is Numerics.FP16:
        return False, True
    return _AUTOCAST[recipe.numerics]


def _rounded(value: float) -> float:
    """Return four significant digits: more would claim what the rule cannot."""
    return float(f"{value:.4g}")


def _checkpointing(recipe: Recipe) -> Iterator[Setting]:
    full = recipe.checkpointing is Checkpointing.FULL
    if full and recipe.sharding in FSDP:
        yield Setting("gradient_checkpointing", False, "FSDP checkpoints instead, below")  # noqa: FBT003
        return
    yield Setting("gradient_checkpointing", full, f"checkpointing {recipe.checkpointing.value}")
    if full:
        yield Setting("gradient_checkpointing_kwargs", {"use_reentrant": False})


def _fsdp(job: Job) -> Iterator[Setting]:
    recipe = job.plan.recipe
    yield Setting("fsdp", True, recipe.sharding.value)  # noqa: FBT003
    config = {
        "version": 2,
        "reshard_after_forward": recipe.sharding is not Sharding.FSDP_GRAD_OP,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "cpu_offload": recipe.offload is Offload.PARAMS,
        "activation_checkpointing": recipe.checkpointing is Checkpointing.FULL,
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    yield Setting("fsdp_config", config)
    if job.plan.batch.accum_steps > 1:
        every = recipe.sync_each_batch
        why = "shard gradients at once" if every else "whole gradients are held between passes"
        kwargs = {"gradient_accumulation_kwargs": {"sync_each_batch": every}}
        yield Setting("accelerator_config", kwargs, why)


def _offloads(recipe: Recipe) -> bool:
    return recipe.offload is not Offload.NONE


def _deepspeed(recipe: Recipe) -> dict[str, Any]:
    """Return DeepSpeed's own file; "auto" takes the value from the TrainingArguments."""
    stage = _STAGE[recipe.sharding]
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    config: dict[str, Any] = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": zero,
    }
    if _offloads(recipe):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        params = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
        config["optimizer"] = {"type": "AdamW", "params": params}
    if recipe.offload is Offload.PARAMS:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return config
