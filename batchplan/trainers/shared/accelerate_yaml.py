"""The config of ``accelerate launch``: its devices and its FSDP.

Keys: accelerate ``commands/config/config_args.py, ClusterConfig``; ``utils/launch.py,
prepare_multi_gpu_env``; the names of strategies ``utils/constants.py``.
``fsdp_cpu_ram_efficient_loading`` keeps every rank from loading the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.spec import Checkpointing, Offload, Sharding
from batchplan.trainers.emitted import Job
from batchplan.trainers.keymap import Key, not_understood, read_at, written
from batchplan.trainers.keymap import read as read_keys
from batchplan.trainers.reading import Read
from batchplan.trainers.shared.launch import HEAD, PORT, RANK
from batchplan.trainers.shared.yaml_text import Setting

_PARALLELISM = "parallelism_config"
_REPLICAS = f"{_PARALLELISM}_dp_replicate_size"
_SHARDS = f"{_PARALLELISM}_dp_shard_size"
_RANKS = (
    Key(key="num_processes", option="num_ranks", why="on all machines"),
    Key(key="num_machines", option="num_nodes"),
)


def launch_settings(job: Job, distributed_type: str) -> Iterator[Setting]:
    """Yield what every such config begins with."""
    yield Setting("compute_environment", "LOCAL_MACHINE")
    yield Setting("distributed_type", distributed_type, job.plan.recipe.sharding.value)
    yield from written(_RANKS, job.options())


def fsdp_settings(job: Job, *, checkpoints: bool = True) -> Iterator[Setting]:
    """Yield FSDP's keys; what is wrapped is what the model names in ``_no_split_modules``.

    Args:
        job: the plan.
        checkpoints: whether FSDP does what the plan says of checkpointing; False where the
            trainer does.
    """
    recipe = job.plan.recipe
    settings = {
        "fsdp_version": recipe.fsdp_version,
        "fsdp_reshard_after_forward": recipe.sharding is not Sharding.FSDP_GRAD_OP,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_offload_params": recipe.offload is Offload.PARAMS,
        "fsdp_activation_checkpointing": checkpoints and recipe.checkpointing is Checkpointing.FULL,
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    }
    for key, value in settings.items():
        yield Setting(f"fsdp_config.{key}", value)
    if recipe.sharding is Sharding.FSDP_HYBRID:
        yield Setting(f"{_PARALLELISM}.{_REPLICAS}", job.plan.num_nodes, "a copy on every node")
        yield Setting(f"{_PARALLELISM}.{_SHARDS}", job.options()["ranks_per_node"])


def launcher(job: Job, name: str) -> str:
    """Return ``accelerate launch`` with a config, and the flags that differ from node to node."""
    words = ["accelerate launch", f"--config_file {name}"]
    if job.plan.num_nodes > 1:
        words += [
            f'--machine_rank="{RANK}"',
            f'--main_process_ip="{HEAD}"',
            f"--main_process_port={PORT}",
        ]
    return " ".join(words)


def is_launch_config(file: ConfigFile) -> bool:
    """Whether a file is for ``accelerate launch``."""
    return file.format in (Format.YAML, Format.JSON) and bool(
        {"distributed_type", "compute_environment", "num_processes"} & set(file.data)
    )


def read_devices(file: ConfigFile) -> Iterator[Read | Finding]:
    """Yield over how many devices a launch config runs."""
    reads, problems = read_keys(_RANKS, file)
    yield from reads
    yield from problems


def read_fsdp(file: ConfigFile) -> Iterator[Read | Finding]:
    """Yield how a launch config with FSDP shards."""
    yield from read_fsdp_block(file.under("fsdp_config"))
    if type(replicas := file.get(_PARALLELISM, _REPLICAS)) is int and replicas > 1:
        yield read_at(file, "sharding", Sharding.FSDP_HYBRID.value, _PARALLELISM, _REPLICAS)


_STRATEGIES = {
    "FULL_SHARD": Sharding.FSDP_FULL,
    "1": Sharding.FSDP_FULL,
    "TRUE": Sharding.FSDP_FULL,
    "SHARD_GRAD_OP": Sharding.FSDP_GRAD_OP,
    "2": Sharding.FSDP_GRAD_OP,
    "FALSE": Sharding.FSDP_GRAD_OP,
    "NO_SHARD": Sharding.DDP,
    "3": Sharding.DDP,
    "HYBRID_SHARD": Sharding.FSDP_HYBRID,
    "4": Sharding.FSDP_HYBRID,
}
"""Words of version 1, their numbers, and the truth values of version 2."""


def read_fsdp_block(block: ConfigFile) -> Iterator[Read | Finding]:
    """Yield what an ``fsdp_config`` says, or the arguments of the plugin, without ``fsdp_``."""

    def named(*names: str) -> str:
        keys = [key for name in names for key in (f"fsdp_{name}", name)]
        return next((key for key in keys if key in block), keys[0])

    strategy = named("reshard_after_forward", "sharding_strategy")
    words = str(block.get(strategy, default=strategy not in block)).upper().rpartition(".")[2]
    if words not in _STRATEGIES:
        yield not_understood(block, strategy, block.get(strategy))
    sharding = _STRATEGIES.get(words, Sharding.FSDP_FULL)
    yield read_at(block, "sharding", sharding.value, strategy)
    version = named("version")
    if str(block.get(version)) in ("1", "2"):
        yield read_at(block, "fsdp_version", int(str(block.get(version))), version)
    offload = named("offload_params", "cpu_offload")
    if block.get(offload) is True:
        yield read_at(block, "offload", Offload.PARAMS.value, offload)
    checkpointing = named("activation_checkpointing")
    if block.get(checkpointing) is True:
        yield read_at(block, "checkpointing", Checkpointing.FULL.value, checkpointing)
