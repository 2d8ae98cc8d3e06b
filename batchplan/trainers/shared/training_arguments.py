"""Keys of transformers' ``TrainingArguments``, which several trainers take as they are.

Names are those that every release from 4.56 on accepts. Source: transformers
``training_args.py, TrainingArguments``; the blocks below ``fsdp_config`` and
``accelerator_config``: ``trainer_pt_utils.py, AcceleratorConfig``, accelerate
``utils/dataclasses.py, FullyShardedDataParallelPlugin``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath

from batchplan.configfile import ConfigFile, Finding
from batchplan.spec import Checkpointing, Offload, Optimizer, Recipe, Sharding
from batchplan.trainers.emitted import Job
from batchplan.trainers.format import FSDP, ZERO
from batchplan.trainers.keymap import Key, read, read_at, written
from batchplan.trainers.reading import Read
from batchplan.trainers.shared.combine import CAST
from batchplan.trainers.shared.deepspeed_json import STAGE, offloads, read_deepspeed
from batchplan.trainers.shared.optimizers import MOMENTUM, optim_name, read_optim
from batchplan.trainers.shared.precision import autocast
from batchplan.trainers.shared.yaml_text import Setting

BATCH = (
    Key(key="per_device_train_batch_size", option="micro_batch"),
    Key(
        key="gradient_accumulation_steps",
        option="accum_steps",
        why="x {micro_batch} x {num_ranks} devices = {global_batch:,} sequences a step",
    ),
)
RATE = (
    Key(key="num_train_epochs", option="epochs"),
    Key(key="max_steps", option="max_steps", is_written=False),
    Key(key="learning_rate", option="learning_rate", why="{rule} rule"),
    Key(key="lr_scheduler_type", option="schedule"),
    Key(key="warmup_steps", option="warmup_steps", why="optimizer steps"),
    Key(key="warmup_ratio", option="warmup_ratio", is_written=False),
    Key(key="adam_beta2", option="beta2", why="half-life in tokens kept"),
)
LOSS = Key(
    key="use_liger_kernel",
    option="loss",
    words={"fused": True, "standard": False},
    when={"loss": ("fused",)},
    why="fused loss: needs liger-kernel",
)
_CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""The newer name first: transformers 5.23 took it in place of the other, which still works."""
_GRAD_OP = ("shard_grad_op", "SHARD_GRAD_OP")
REPLICAS = "PARALLELISM_CONFIG_DP_REPLICATE_SIZE"
"""accelerate's variable for hybrid sharding."""


def batch_and_rate(job: Job) -> Iterator[Setting]:
    """Yield how much a step does and how it learns."""
    options = job.options()
    yield from written(BATCH, options)
    if job.several_devices:
        why = "every token weighs the same, whichever device it is on"
        yield Setting("average_tokens_across_devices", True, why)
    for setting in written(RATE, options):
        if setting.key == "num_train_epochs":
            each = "" if setting.value == 1 else " each"
            yield Setting(setting.key, setting.value, f"{job.epoch_steps:,} optimizer steps{each}")
        else:
            yield setting


def optimizer(recipe: Recipe) -> Iterator[Setting]:
    """Yield the optimizer; DeepSpeed's own is named in its file only."""
    if recipe.sharding not in ZERO or not offloads(recipe):
        yield Setting("optim", optim_name(recipe))
    if recipe.optimizer is Optimizer.SGD_MOMENTUM:
        yield Setting("optim_args", MOMENTUM)


def precision(recipe: Recipe) -> Iterator[Setting]:
    """Yield whether mixed precision is on."""
    cast = autocast(recipe)
    yield Setting("bf16", cast == "bf16", f"numerics {recipe.numerics.value}")
    yield Setting("fp16", cast == "fp16")


def checkpointing(recipe: Recipe) -> Iterator[Setting]:
    """Yield activation checkpointing: the Trainer's own, or under FSDP a key of ``fsdp_config``."""
    full = recipe.checkpointing is Checkpointing.FULL
    if full and recipe.sharding in FSDP:
        yield Setting("gradient_checkpointing", False, "FSDP checkpoints instead, below")
        return
    yield Setting("gradient_checkpointing", full, f"checkpointing {recipe.checkpointing.value}")
    if full:
        yield Setting("gradient_checkpointing_kwargs", {"use_reentrant": recipe.reentrant})


def fsdp(job: Job) -> Iterator[Setting]:
    """Yield FSDP's keys, where the plan shards with it."""
    recipe = job.plan.recipe
    if recipe.sharding not in FSDP:
        return
    yield Setting("fsdp", True, recipe.sharding.value)
    yield Setting(
        "fsdp_config",
        {
            "version": recipe.fsdp_version,
            "reshard_after_forward": recipe.sharding is not Sharding.FSDP_GRAD_OP,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "cpu_offload": recipe.offload is Offload.PARAMS,
            "activation_checkpointing": recipe.checkpointing is Checkpointing.FULL,
            "state_dict_type": "SHARDED_STATE_DICT",
        },
    )
    yield from sync_each_batch(job)


def sync_each_batch(job: Job) -> Iterator[Setting]:
    """Yield whether FSDP shards gradients after every pass."""
    if job.plan.recipe.sharding in FSDP and job.plan.batch.accum_steps > 1:
        every = job.plan.recipe.sync_each_batch
        why = "shard gradients at once" if every else "whole gradients are held between passes"
        kwargs = {"gradient_accumulation_kwargs": {"sync_each_batch": every}}
        yield Setting("accelerator_config", kwargs, why)


def deepspeed(recipe: Recipe, name: str) -> Iterator[Setting]:
    """Yield the DeepSpeed file, where the plan shards with it."""
    if recipe.sharding in ZERO:
        yield Setting("deepspeed", name, f"ZeRO-{STAGE[recipe.sharding]}; start beside it")


def hybrid_environment(job: Job) -> dict[str, str]:
    """Return the variables that make accelerate shard in a node and copy between nodes.

    Source: accelerate ``parallelism_config.py, ParallelismConfig``.
    """
    if job.plan.recipe.sharding is not Sharding.FSDP_HYBRID:
        return {}
    return {
        "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
        REPLICAS: str(job.plan.num_nodes),
        "PARALLELISM_CONFIG_DP_SHARD_SIZE": str(job.plan.batch.num_ranks // job.plan.num_nodes),
    }


def read_arguments(
    arguments: ConfigFile, others: Sequence[ConfigFile] = ()
) -> tuple[list[Read], list[Finding]]:
    """Return what TrainingArguments say: a whole YAML file, or the part of a script.

    Args:
        arguments: the keys, at the top.
        others: further files of the run, of which ``deepspeed`` may name one.
    """
    reads, problems = read_step(arguments)
    loss, unknown = read((LOSS,), arguments)
    reads += [*loss, *read_precision(arguments), *read_sharding(arguments, others)]
    return [*reads, *read_checkpointing(arguments)], [*problems, *unknown]


def read_step(arguments: ConfigFile) -> tuple[list[Read], list[Finding]]:
    """Return how much a step does, how it learns, and with which optimizer."""
    reads, problems = read((*BATCH, *RATE), arguments)
    reads = [_warmup(one) for one in reads]
    named = read_optim(arguments)
    if isinstance(named, Finding):
        problems.append(named)
    else:
        reads += [named] if isinstance(named, Read) else named
    return reads, problems


def read_precision(arguments: ConfigFile) -> Iterator[Read]:
    """Yield the mixed precision that is on."""
    for half in ("bf16", "fp16"):
        if arguments.get(half) is True:
            yield read_at(arguments, CAST, half, half)


def _warmup(one: Read) -> Read:
    """Return steps as a ratio where they are below 1, as transformers takes them from 5.0 on."""
    is_ratio = one.option == "warmup_steps" and isinstance(one.value, float) and 0 < one.value < 1
    return replace(one, option="warmup_ratio") if is_ratio else one


def read_checkpointing(arguments: ConfigFile) -> Iterator[Read]:
    """Yield activation checkpointing, the Trainer's own or FSDP's, and its reentrancy."""
    name = next((key for key in _CHECKPOINTING if arguments.get(key) is not None), None)
    inner = arguments.get("fsdp_config", "activation_checkpointing")
    is_on = name is not None and bool(arguments.get(name))
    if inner is True:
        path: tuple[str, ...] = ("fsdp_config", "activation_checkpointing")
        yield read_at(arguments, "checkpointing", Checkpointing.FULL.value, *path)
    elif name is not None:
        value = Checkpointing.FULL if is_on else Checkpointing.NONE
        yield read_at(arguments, "checkpointing", value.value, name)
    for key in _CHECKPOINTING:
        reentrant = arguments.get(f"{key}_kwargs", "use_reentrant")
        if is_on and isinstance(reentrant, bool):
            yield read_at(arguments, "reentrant", reentrant, f"{key}_kwargs", "use_reentrant")


def read_sharding(arguments: ConfigFile, others: Sequence[ConfigFile]) -> Iterator[Read]:
    """Yield what DeepSpeed and FSDP do; ``deepspeed`` may name one of the other files."""
    deepspeed = arguments.get("deepspeed")
    if isinstance(deepspeed, dict):
        yield from read_deepspeed(arguments.under("deepspeed"))
    elif isinstance(deepspeed, str):
        name = PurePath(deepspeed).name
        for file in others:
            if PurePath(file.name).name == name:
                yield from read_deepspeed(file)
    if arguments.get("fsdp"):
        yield from _read_fsdp(arguments, others)
    sync = arguments.get("accelerator_config", "gradient_accumulation_kwargs", "sync_each_batch")
    if isinstance(sync, bool):
        path = ("accelerator_config", "gradient_accumulation_kwargs", "sync_each_batch")
        yield read_at(arguments, "sync_each_batch", sync, *path)


def _read_fsdp(arguments: ConfigFile, others: Sequence[ConfigFile]) -> Iterator[Read]:
    words = str(arguments.get("fsdp")).lower()
    config = arguments.under("fsdp_config")
    replicas = [file for file in others if file.get("env", REPLICAS) is not None]
    if replicas or "hybrid_shard" in words:
        sharding = Sharding.FSDP_HYBRID
    elif config.get("reshard_after_forward") in (False, *_GRAD_OP) or "shard_grad_op" in words:
        sharding = Sharding.FSDP_GRAD_OP
    else:
        sharding = Sharding.FSDP_FULL
    yield read_at(arguments, "sharding", sharding.value, "fsdp")
    version = config.get("version", default=config.get("fsdp_version"))
    if isinstance(version, int):
        yield read_at(config, "fsdp_version", version, "version")
    if config.get("cpu_offload") is True or "offload" in words:
        yield read_at(arguments, "offload", Offload.PARAMS.value, "fsdp")
