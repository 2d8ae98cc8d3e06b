"""Axolotl: one YAML with names of its own, which ``axolotl train`` takes.

Its schema ignores top-level keys that it does not know. ``bf16: true`` loads the weights in bf16
and runs autocast over them; there is no key for one without the other. Source: axolotl
``utils/schemas/config.py, AxolotlInputConfig``; ``utils/schemas/training.py``, ``peft.py``,
``fsdp.py``; ``integrations/liger/args.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.spec import (
    Checkpointing,
    Loss,
    Method,
    Numerics,
    Offload,
    Optimizer,
    Recipe,
    Sharding,
)
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import (
    ADAPTERS,
    AUTOCAST,
    DDP,
    FSDP,
    FULL,
    MASTER,
    ZERO,
    Refusal,
    TrainerFormat,
    Way,
)
from batchplan.trainers.keymap import written
from batchplan.trainers.releases import Needs
from batchplan.trainers.shared import training_arguments as arguments
from batchplan.trainers.shared.adapters import scale
from batchplan.trainers.shared.axolotl_keys import KEYS, LIGER, read
from batchplan.trainers.shared.deepspeed_json import auto_config, offloads, to_json
from batchplan.trainers.shared.launch import (
    is_one_process,
    launch_file,
    torchrun_flags,
    visible_devices,
)
from batchplan.trainers.shared.model_kwargs import ALL_LINEAR
from batchplan.trainers.shared.needs import DEEPSPEED, FLASH
from batchplan.trainers.shared.optimizers import MOMENTUM, optim_name
from batchplan.trainers.shared.precision import WITHOUT_OWN_DTYPES, autocast
from batchplan.trainers.shared.summary import header, start
from batchplan.trainers.shared.ways import (
    ARGUMENT_VALUES,
    DECIDED,
    DEEPSPEED_REFUSALS,
    LOSSES,
    NO_REENTRANT_FSDP,
    NOT_ON_DTENSORS,
    OFFLOAD_REFUSALS,
)
from batchplan.trainers.shared.yaml_text import Setting, to_yaml


def write(job: Job) -> tuple[EmittedFile, ...]:
    """Return the YAML of a plan, the DeepSpeed file where it needs one, and how to start it."""
    recipe = job.plan.recipe
    name, deepspeed = f"{job.stem}.yaml", f"{job.stem}.ds.json"
    main = EmittedFile(name=name, text=to_yaml(_header(job), _settings(job, deepspeed)))
    launch = launch_file(job, _command(job, name), environment=_environment(job))
    if recipe.sharding in ZERO:
        return main, EmittedFile(name=deepspeed, text=to_json(auto_config(recipe))), launch
    return main, launch


def _command(job: Job, name: str) -> str:
    if is_one_process(job):
        return f"axolotl train {name} --launcher python"
    flags = torchrun_flags(job)
    if job.plan.num_nodes > 1:
        # Left out, axolotl makes one up on every node, and no two of them meet.
        flags.append(f"--rdzv_id={job.stem}")
    return f"axolotl train {name} --launcher torchrun -- {' '.join(flags)}"


def _environment(job: Job) -> dict[str, str]:
    # A process that is alone and sees several GPUs spreads the model over them.
    return {} if job.several_devices else visible_devices(job)


def _header(job: Job) -> Iterator[str]:
    return header(
        job,
        FORMAT,
        ("Data", f"rows are padded to {job.plan.batch.seq_len} tokens; name yours below"),
        start(job),
    )


def _settings(job: Job, deepspeed: str) -> Iterator[Setting]:
    recipe = job.plan.recipe
    options = job.options()
    yield from written(KEYS[:1], options)
    if recipe.loss is Loss.FUSED:
        yield Setting("plugins", [LIGER], "fused loss: needs liger-kernel")
        yield Setting("liger_fused_linear_cross_entropy", True)
    data = {"path": "data.jsonl", "ds_type": "json", "type": "completion"}
    yield Setting("datasets", [data], "yours")
    yield Setting("output_dir", "out")
    yield from written(KEYS[1:], options)
    yield Setting("sample_packing", False)
    yield Setting("pad_to_sequence_len", True, "the memory estimate counts every token")
    yield from _adapters(recipe)
    yield from _optimizer(recipe)
    cast = autocast(recipe) or _only_half(recipe)
    yield Setting("bf16", cast == "bf16", f"numerics {recipe.numerics.value}")
    yield Setting("fp16", cast == "fp16")
    yield from _checkpointing(recipe)
    yield from _sharding(job, deepspeed)


def _only_half(recipe: Recipe) -> str | None:
    """Return ``bf16`` for the shards that FSDP leaves in it."""
    return "bf16" if recipe.numerics is Numerics.BF16 else None


def _adapters(recipe: Recipe) -> Iterator[Setting]:
    if recipe.method is Method.FULL:
        return
    if recipe.method is Method.QLORA:
        yield Setting("load_in_4bit", True)
    yield scale(recipe)
    if recipe.lora_targets == ALL_LINEAR:
        yield Setting("lora_target_linear", True)
    else:
        yield Setting("lora_target_modules", recipe.lora_targets.split(","))


def _optimizer(recipe: Recipe) -> Iterator[Setting]:
    if recipe.sharding not in ZERO or not offloads(recipe):
        yield Setting("optimizer", optim_name(recipe))
    if recipe.optimizer is Optimizer.SGD_MOMENTUM:
        yield Setting("optim_args", MOMENTUM)


def _checkpointing(recipe: Recipe) -> Iterator[Setting]:
    is_full = recipe.checkpointing is Checkpointing.FULL
    if is_full and recipe.sharding in FSDP:
        yield Setting("gradient_checkpointing", False, "FSDP checkpoints instead, below")
        return
    why = f"checkpointing {recipe.checkpointing.value}"
    yield Setting("gradient_checkpointing", is_full, why)
    if is_full:
        yield Setting("gradient_checkpointing_kwargs", {"use_reentrant": recipe.reentrant})


def _sharding(job: Job, deepspeed: str) -> Iterator[Setting]:
    recipe = job.plan.recipe
    yield from arguments.deepspeed(recipe, deepspeed)
    if recipe.sharding not in FSDP:
        return
    yield Setting("fsdp_version", recipe.fsdp_version)
    yield Setting(
        "fsdp_config",
        {
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "reshard_after_forward": recipe.sharding is not Sharding.FSDP_GRAD_OP,
            "offload_params": recipe.offload is Offload.PARAMS,
            "activation_checkpointing": recipe.checkpointing is Checkpointing.FULL,
            "cpu_ram_efficient_loading": True,
            "state_dict_type": "SHARDED_STATE_DICT",
        },
        recipe.sharding.value,
    )
    if recipe.sharding is Sharding.FSDP_HYBRID:
        nodes = job.plan.num_nodes
        yield Setting("dp_shard_size", job.plan.batch.num_ranks // nodes, "devices of a node")
        yield Setting("dp_replicate_size", nodes, "nodes")
    yield from arguments.sync_each_batch(job)


FORMAT = TrainerFormat(
    trainer="axolotl",
    needs=(Needs(package="axolotl", releases=">=0.21"), DEEPSPEED, FLASH),
    decides=DECIDED.difference(WITHOUT_OWN_DTYPES, {"expandable_segments"})
    | {"loss", "frozen_upcast"},
    ways=(
        Way(methods=FULL, shardings=ZERO, numerics=MASTER),
        Way(methods=FULL, shardings=DDP, numerics=(Numerics.BF16_AUTOCAST, Numerics.FP32)),
        Way(methods=FULL, shardings=FSDP, numerics=(Numerics.BF16, Numerics.FP32), alone=False),
        Way(methods=ADAPTERS, shardings=DDP, numerics=(*AUTOCAST, Numerics.FP32)),
        Way(
            methods=ADAPTERS[:1],
            shardings=FSDP,
            numerics=(Numerics.BF16_AUTOCAST, Numerics.FP32),
            alone=False,
        ),
        # Staged loading of 4-bit weights takes no replicas (check_staged_nf4).
        Way(
            methods=ADAPTERS[1:],
            shardings=FSDP[:2],
            numerics=(Numerics.BF16_AUTOCAST,),
            alone=False,
        ),
        Way(methods=ADAPTERS[:1], shardings=ZERO, numerics=MASTER),
    ),
    values={
        **ARGUMENT_VALUES,
        "loss": LOSSES,
    },
    refusals=(
        *DEEPSPEED_REFUSALS,
        Refusal(
            when={"sharding": FSDP, "method": FULL, "numerics": (*AUTOCAST, *MASTER)},
            text="its FSDP keeps no fp32 copies of bf16 weights, which is --numerics bf16, not "
            "{numerics}",
        ),
        NOT_ON_DTENSORS,
        Refusal(
            when={"method": ADAPTERS[1:], "sharding": (*DDP, *ZERO), "frozen_upcast": (True,)},
            text="it casts what is not 4-bit to fp32 only under FSDP",
        ),
        NO_REENTRANT_FSDP,
        *OFFLOAD_REFUSALS,
    ),
    marks=frozenset({"base_model", "micro_batch_size", "sequence_len", "axolotl"}),
    trains_causal_only=True,
    write=write,
    read=read,
)
