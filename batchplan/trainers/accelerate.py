"""Accelerate: the config of ``accelerate launch``, and what a loop of the user's own must call.

Keys: accelerate ``commands/config/config_args.py, ClusterConfig``; the blocks in it
``utils/launch.py, prepare_multi_gpu_env``, ``prepare_deepspeed_cmd_env``. A DeepSpeed plan has a
JSON file: a config of launch cannot say how large buckets are. Accelerate puts the loop's own
numbers in place of ``"auto"`` there (``accelerator.py, Accelerator._prepare_deepspeed``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.spec import Offload, OptimizerImpl, Sharding
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import DDP, FSDP, ZERO, TrainerFormat
from batchplan.trainers.keymap import Key, read_at, written
from batchplan.trainers.keymap import read as read_keys
from batchplan.trainers.reading import Read, Reading
from batchplan.trainers.releases import Needs
from batchplan.trainers.shared import loop
from batchplan.trainers.shared.accelerate_yaml import (
    fsdp_settings,
    is_launch_config,
    launch_settings,
    launcher,
    read_devices,
    read_fsdp,
    read_fsdp_block,
)
from batchplan.trainers.shared.combine import CAST, reading
from batchplan.trainers.shared.deepspeed_json import (
    AUTO,
    STAGE,
    TRIPLE,
    is_deepspeed,
    offloads,
    read_deepspeed,
    to_json,
    zero_optimization,
)
from batchplan.trainers.shared.launch import launch_file, read_launch
from batchplan.trainers.shared.model_kwargs import model_file, read_model
from batchplan.trainers.shared.needs import BESIDE_TRANSFORMERS, LOADS_BY_DTYPE
from batchplan.trainers.shared.optimizer_classes import CLASSES, TORCH_ADAMW, class_settings
from batchplan.trainers.shared.precision import WITHOUT_OWN_DTYPES, autocast
from batchplan.trainers.shared.summary import header, start
from batchplan.trainers.shared.ways import (
    ADAPTER_WAYS,
    CHECKPOINTINGS,
    DECIDED,
    FULL_WAYS,
    LOSSES,
    REFUSALS,
)
from batchplan.trainers.shared.yaml_text import Setting, to_yaml

CLIPPED_AT = 1.0
"""What accelerate puts in place of ``gradient_clipping: "auto"``."""
_STAGES = {stage: sharding.value for sharding, stage in STAGE.items()}
_OFFLOADS = {
    "offload_optimizer_device": Offload.OPTIMIZER,
    "offload_param_device": Offload.PARAMS,
}
"""The later of two counts: whoever offloads weights offloads the optimizer too."""

_PRECISION = Key(
    key="mixed_precision",
    option=CAST,
    words={"bf16": "bf16", "fp16": "fp16"},
    aliases={"no": None, False: None},
    is_written=False,
)
"""``no`` without quotes is false in YAML 1.1."""
_STEPS = Key(
    key="GradientAccumulationPlugin.num_steps",
    option="accum_steps",
    why="x {micro_batch} x {num_ranks} devices = {global_batch:,} sequences a step",
)
_SYNC = Key(
    key="GradientAccumulationPlugin.sync_each_batch",
    option="sync_each_batch",
    when={"sharding": FSDP},
    why="true shards gradients after every pass; false holds them whole",
)
_VIEW = Key(
    key="DistributedDataParallelKwargs.gradient_as_bucket_view",
    option="bucket_view",
    when={"bucket_view": (True,), "sharding": DDP},
)
_CALLS = (
    _STEPS,
    _SYNC,
    _VIEW,
    Key(key="Accelerator.gradient_accumulation_steps", option="accum_steps", is_written=False),
    replace(_PRECISION, key="Accelerator.mixed_precision"),
)


def write(job: Job) -> tuple[EmittedFile, ...]:
    """Return the launch config of a plan, the files beside it, and how to start it."""
    name, deepspeed = f"{job.stem}.yaml", f"{job.stem}.ds.json"
    main = EmittedFile(name=name, text=to_yaml(_header(job), _settings(job, deepspeed)))
    beside: tuple[EmittedFile, ...] = ()
    if job.plan.recipe.sharding in ZERO:
        beside = (EmittedFile(name=deepspeed, text=to_json(_deepspeed(job))),)
    command = f"{launcher(job, name)} train.py"
    return main, *beside, _loop(job), model_file(job), launch_file(job, command)


def _header(job: Job) -> Iterator[str]:
    return header(
        job,
        FORMAT,
        ("Data", f"{job.plan.batch.seq_len} tokens a sequence"),
        ("Script", f"train.py calls what {job.stem}.loop.yaml and {job.stem}.model.yaml say"),
        start(job),
    )


def _settings(job: Job, deepspeed: str) -> Iterator[Setting]:
    recipe = job.plan.recipe
    yield from launch_settings(job, _distributed_type(job))
    if recipe.sharding in ZERO:
        yield Setting("deepspeed_config.deepspeed_config_file", deepspeed, "start beside it")
        if job.plan.num_nodes > 1:
            yield Setting("deepspeed_config.deepspeed_multinode_launcher", "standard")
        if STAGE[recipe.sharding] == 3:
            yield Setting("deepspeed_config.zero3_init_flag", True, "load sharded")
        return
    why = f"numerics {recipe.numerics.value}"
    yield Setting("mixed_precision", autocast(recipe) or "no", why)
    if recipe.sharding in FSDP:
        yield from fsdp_settings(job)


def _distributed_type(job: Job) -> str:
    if job.plan.recipe.sharding in ZERO:
        return "DEEPSPEED"
    if job.plan.recipe.sharding in FSDP:
        return "FSDP"
    return "MULTI_GPU" if job.several_devices else "NO"


def _deepspeed(job: Job) -> dict[str, Any]:
    half = autocast(job.plan.recipe)
    return {
        **{key: AUTO for key, _ in TRIPLE},
        "gradient_clipping": CLIPPED_AT,
        str(half): {"enabled": True},
        "zero_optimization": zero_optimization(job.plan.recipe),
    }


def _loop(job: Job) -> EmittedFile:
    return loop.loop_file(job, (), _usage(job), _loop_settings(job))


def _usage(job: Job) -> Iterator[str]:
    recipe = job.plan.recipe
    yield "accelerator = Accelerator("
    if recipe.bucket_view and recipe.sharding in DDP:
        yield "    kwargs_handlers=["
        yield '        DistributedDataParallelKwargs(**loop["DistributedDataParallelKwargs"])],'
    yield "    gradient_accumulation_plugin="
    yield '        GradientAccumulationPlugin(**loop["GradientAccumulationPlugin"]),'
    yield '    **loop["Accelerator"])'
    yield from loop.usage_of_data()
    yield from loop.usage_of_model(job)
    yield from loop.usage_of_optimizer()
    yield f"scheduler = {loop.usage_of_scheduler(job)}"
    yield "All four go through accelerator.prepare; with accelerator.accumulate(model): forward,"
    yield "accelerator.backward(loss), if accelerator.sync_gradients:"
    if recipe.sharding not in ZERO:
        yield f"    accelerator.clip_grad_norm_(model.parameters(), {CLIPPED_AT})"
    yield "    optimizer.step(), scheduler.step(), optimizer.zero_grad()"


def _loop_settings(job: Job) -> Iterator[Setting]:
    options = job.options()
    why = "else the scheduler would step once for every device"
    yield Setting("Accelerator.step_scheduler_with_optimizer", False, why)
    yield from written((_STEPS, _SYNC, _VIEW), options)
    yield from loop.data(job)
    # Accelerate makes DeepSpeed's own CPU AdamW of torch's (map_pytorch_optim_to_deepspeed).
    yield from class_settings(job, path=TORCH_ADAMW if offloads(job.plan.recipe) else None)
    yield from loop.model(job)


def read(files: Sequence[ConfigFile]) -> Reading:
    """Return what the files of one run say."""
    reads: list[Read] = []
    problems: list[Finding] = []
    for file in files:
        if file.format is Format.SHELL:
            found = list(_read_flags(file))
        elif is_launch_config(file):
            found = list(_read_config(file, files))
        elif file.format in (Format.YAML, Format.PYTHON):
            found = list(_read_calls(loop.by_call(file)))
        else:
            continue
        reads += [one for one in found if isinstance(one, Read) and one.value is not None]
        problems += [one for one in found if isinstance(one, Finding)]
    loaded, unknown = read_model(files)
    return reading("accelerate", [*reads, *loaded, *read_launch(files)], [*problems, *unknown])


def _read_config(file: ConfigFile, others: Sequence[ConfigFile]) -> Iterator[Read | Finding]:
    yield from read_devices(file)
    reads, problems = read_keys((_PRECISION,), file)
    yield from reads
    yield from problems
    kind = str(file.get("distributed_type")).upper()
    if kind == "DEEPSPEED":
        yield from _read_deepspeed(file.under("deepspeed_config"), others)
    elif kind == "FSDP":
        yield from read_fsdp(file)
    elif kind in ("NO", "FALSE", "MULTI_GPU"):
        yield read_at(file, "sharding", Sharding.DDP.value, "distributed_type")


def _read_flags(file: ConfigFile) -> Iterator[Read | Finding]:
    """Yield what flags of ``accelerate launch`` say, named as the keys of its config."""
    if file.get("program", 0) != "accelerate":
        return
    flags = file.under("flags")
    entries = {
        (str(path[0]).lstrip("-").replace("-", "_"), *path[1:]): entry
        for path, entry in flags.entries.items()
    }
    named = replace(flags, entries=entries)
    reads, problems = read_keys((_PRECISION,), named)
    yield from reads
    yield from problems
    if "use_deepspeed" in named:
        yield from _inline(named)
    if "use_fsdp" in named:
        yield from read_fsdp_block(named)


def _read_calls(calls: ConfigFile) -> Iterator[Read | Finding]:
    """Yield what a loop and its plugins say."""
    reads, problems = loop.read_loop(calls, _CALLS)
    yield from reads
    yield from problems
    if "FullyShardedDataParallelPlugin" in calls:
        yield from read_fsdp_block(calls.under("FullyShardedDataParallelPlugin"))
    if "DeepSpeedPlugin" in calls:
        yield from _inline(calls.under("DeepSpeedPlugin"))


def _read_deepspeed(block: ConfigFile, others: Sequence[ConfigFile]) -> Iterator[Read]:
    named = block.get("deepspeed_config_file")
    if not isinstance(named, str):
        yield from _inline(block)
        return
    for other in others:
        if PurePath(other.name).name == PurePath(named).name and is_deepspeed(other):
            yield from read_deepspeed(other)


def _inline(block: ConfigFile) -> Iterator[Read]:
    """Yield DeepSpeed's settings among accelerate's own; there its buckets have its own sizes."""
    stage = block.get("zero_stage", default=2)
    if type(stage) is int and stage in _STAGES:
        yield read_at(block, "sharding", _STAGES[stage], "zero_stage")
        yield read_at(block, "zero_buckets", "default", "zero_stage")
    steps = block.get("gradient_accumulation_steps")
    if type(steps) is int:
        yield read_at(block, "accum_steps", steps, "gradient_accumulation_steps")
    for key, offload in _OFFLOADS.items():
        if block.get(key) in ("cpu", "nvme"):
            yield read_at(block, "offload", offload.value, key)


FORMAT = TrainerFormat(
    trainer="accelerate",
    needs=(
        Needs(package="accelerate", releases=">=1.10"),
        LOADS_BY_DTYPE,
        *BESIDE_TRANSFORMERS,
    ),
    decides=DECIDED | {"loss", "bucket_view"},
    ways=(*FULL_WAYS, *ADAPTER_WAYS),
    values={
        **WITHOUT_OWN_DTYPES,
        "optimizer": tuple(CLASSES),
        "optimizer_impl": tuple(OptimizerImpl),
        "checkpointing": CHECKPOINTINGS,
        "loss": LOSSES,
        "fsdp_version": (2,),
    },
    refusals=REFUSALS,
    marks=frozenset(
        {
            "distributed_type",
            "compute_environment",
            "GradientAccumulationPlugin",
            "Accelerator",
            "accelerate",
        }
    ),
    write=write,
    read=read,
)
