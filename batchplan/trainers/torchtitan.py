"""torchtitan: a launch script, whose flags override a configuration that torchtitan registers.

Sources: torchtitan ``config/manager.py``, ``config/configs.py``, ``models/*/config_registry.py``,
``distributed/fsdp.py``. There is no config file any more; the subcommand that chooses activation
checkpointing comes last. Adapters need a configuration in Python and are not written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.errors import SpecError
from batchplan.spec import Checkpointing, Numerics, Offload, Optimizer, OptimizerImpl, Sharding
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import ADAPTERS, FSDP, FULL, Refusal, TrainerFormat, Way
from batchplan.trainers.keymap import Key, read_at, written
from batchplan.trainers.keymap import read as read_keys
from batchplan.trainers.reading import Read, Reading, only_last
from batchplan.trainers.releases import Needs
from batchplan.trainers.shared.flags import flags_of
from batchplan.trainers.shared.launch import launch_file, read_launch, torchrun
from batchplan.trainers.shared.precision import WITHOUT_OWN_DTYPES
from batchplan.trainers.shared.summary import header
from batchplan.trainers.shared.torchtitan_configs import (
    REGISTERED,
    Registered,
    registered_as,
    registered_for,
    repository_of,
)
from batchplan.trainers.shared.unplanned import unplanned
from batchplan.trainers.shared.ways import OFFLOAD_REFUSALS

_ENTRY = "torchtitan.train"
_GROUP = "optimizer.param_groups.0.optimizer_kwargs"
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_NUMERICS = {
    Numerics.BF16_MASTER: ("float32", "bfloat16"),
    Numerics.BF16: ("bfloat16", "bfloat16"),
    Numerics.FP32: ("float32", "float32"),
}
"""``training.dtype`` and ``training.mixed_precision_param``."""
_CHECKPOINTING = {Checkpointing.NONE: "none", Checkpointing.FULL: "full"}
_SUBCOMMAND = "activation-checkpoint:"

_FLAGS = (
    Key(key="training.local_batch_size", option="micro_batch"),
    Key(key="training.global_batch_size", option="global_batch"),
    Key(key="training.seq_len", option="seq_len"),
    Key(
        key="parallelism.fsdp_reshard_after_forward",
        option="sharding",
        words={"fsdp-hybrid": "always", "fsdp-full": "always", "fsdp-grad-op": "never"},
        aliases={"default": "fsdp-full"},
    ),
    Key(
        key="optimizer.implementation",
        option="optimizer_impl",
        words={"fused": "fused", "foreach": "foreach", "for-loop": "for-loop"},
        aliases={"fused_opt_states_bf16": "fused"},
    ),
    Key(key=f"{_GROUP}.lr", option="learning_rate"),
    Key(key="lr_scheduler.warmup_steps", option="warmup_steps"),
    Key(key="lr_scheduler.decay_type", option="schedule"),
)
_ONLY_READ = (
    Key(key="training.steps", option="max_steps"),
    Key(key=f"{_GROUP}.betas.1", option="beta2"),
    # Of releases before the subcommand.
    Key(
        key="activation_checkpoint.mode",
        option="checkpointing",
        words={mode.value: mode.value for mode in Checkpointing},
    ),
)
_NOT_PLANNED = (
    "parallelism.tensor_parallel_degree",
    "parallelism.pipeline_parallel_degree",
    "parallelism.context_parallel_degree",
    "parallelism.expert_parallel_degree",
    "compile.enable",
)
"""Flags that change memory in ways that are not modelled, above 1 or on."""


def write(job: Job) -> tuple[EmittedFile, ...]:
    """Return the launch script, which is all there is.

    Raises:
        SpecError: when torchtitan registers no configuration of the model.
    """
    found = registered_for(job.model.id)
    if found is None:
        known = ", ".join(one.repositories[0] for one in REGISTERED)
        raise SpecError(
            f"torchtitan has no configuration for {job.model.id} that flags can finish. "
            f"It has them for {known}."
        )
    words = [f"{torchrun(job)} -m {_ENTRY} --module {found.module} --config={found.name}"]
    words += _flags(job)
    words.append(f"{_SUBCOMMAND}{_CHECKPOINTING[job.plan.recipe.checkpointing]}")
    script = launch_file(job, " \\\n  ".join(words))
    shebang, _, rest = script.text.partition("\n")
    comments = [f"# {line}".rstrip() for line in _header(job, found)]
    text = "\n".join([shebang, *comments, rest])
    return (EmittedFile(name=f"{job.stem}.sh", text=text),)


def _header(job: Job, found: Registered) -> Iterator[str]:
    length = [("Length", f"as {found.name} has it without --training.steps")]
    return header(
        job,
        FORMAT,
        ("Before", f"hf download {job.model.id} --local-dir {_folder(job)}"),
        ("Data", f"packed to {job.plan.batch.seq_len} tokens; {found.name}'s without a flag"),
        *(length if job.epoch_steps is None else []),
        ("Graphs", "of CUDA are off: they keep memory of their own, which the peak leaves out"),
        ("Start", f"bash {job.stem}.sh"),
    )


def _folder(job: Job) -> str:
    return f"assets/hf/{job.model.id.rstrip('/').rpartition('/')[2]}"


def _flags(job: Job) -> Iterator[str]:
    """Yield flags; one that takes no value is never the last, where it might swallow a word."""
    recipe, batch, options = job.plan.recipe, job.plan.batch, job.options()
    yield f"--hf_assets_path={_folder(job)}"
    yield "--checkpoint.enable"
    yield "--checkpoint.initial_load_in_hf"
    yield "--training.disable_cuda_graphs"
    if recipe.offload is Offload.PARAMS:
        yield "--training.enable_cpu_offload"
    if "beta2" in options:
        yield f"--{_GROUP}.betas 0.9 {options['beta2']!r}"
    yield from (f"--{one.key}={_word(one.value)}" for one in written(_FLAGS, options))
    if job.epoch_steps is not None:
        yield f"--training.steps={max(1, round(job.epochs * job.epoch_steps))}"
    weights, compute = _NUMERICS[recipe.numerics]
    yield f"--training.dtype={weights}"
    yield f"--training.mixed_precision_param={compute}"
    replicas = job.plan.num_nodes if recipe.sharding is Sharding.FSDP_HYBRID else 1
    yield f"--parallelism.data_parallel_replicate_degree={replicas}"
    yield f"--parallelism.data_parallel_shard_degree={batch.num_ranks // replicas}"
    yield "--parallelism.tensor_parallel_degree=1"


def _word(value: object) -> str:
    """Return a value as a word that YAML 1.1 takes for the same: 2.0e-05, where Python has 2e-05.

    >>> _word(2e-05), _word(0.001), _word("fused")
    ('2.0e-05', '0.001', 'fused')
    """
    text = str(value)
    return text.replace("e", ".0e") if isinstance(value, float) and "." not in text else text


def read(files: Sequence[ConfigFile]) -> Reading:
    """Return what launch commands say, and what the configuration they start from sets."""
    reads = list(read_launch(files))
    problems: list[Finding] = []
    for file in files:
        for flags in flags_of((file,), _ENTRY):
            for one in _read_command(_without_subcommand(flags)):
                if isinstance(one, Read):
                    reads.append(one)
                else:
                    problems.append(one)
        reads += _read_subcommand(file)
    return Reading(trainer="torchtitan", reads=only_last(reads), problems=tuple(problems))


def _read_command(file: ConfigFile) -> Iterator[Read | Finding]:
    yield from _read_registered(file)
    reads, unknown = read_keys((*_FLAGS, *_ONLY_READ), file)
    yield from (one for one in reads if one.option != "global_batch" or one.value != -1)
    yield from unknown
    yield from _read_numerics(file)
    yield from _read_more(file)
    yield from unplanned(file, _NOT_PLANNED)


def _read_registered(file: ConfigFile) -> Iterator[Read]:
    found = registered_as(file.get("config"))
    if found is None:
        return
    folder = str(file.get("hf_assets_path", default=""))
    yield read_at(file, "model", repository_of(found, folder), "config")
    yield read_at(file, "micro_batch", found.micro_batch, "config")
    yield read_at(file, "seq_len", found.seq_len, "config")
    yield read_at(file, "checkpointing", found.checkpointing.value, "config")


def _read_numerics(file: ConfigFile) -> Iterator[Read]:
    weights = file.get("training", "dtype", default=_DTYPES["fp32"])
    compute = file.get("training", "mixed_precision_param", default=_DTYPES["bf16"])
    for numerics, dtypes in _NUMERICS.items():
        if dtypes == (weights, compute):
            yield read_at(file, "numerics", numerics.value, "training", "dtype")


def _read_more(file: ConfigFile) -> Iterator[Read]:
    """Yield what a flag without a value says, and flags that say two things."""
    if file.get("training", "enable_cpu_offload") is True:
        yield read_at(file, "offload", Offload.PARAMS.value, "training", "enable_cpu_offload")
    place = ("parallelism", "data_parallel_replicate_degree")
    replicas = file.get(*place)
    if isinstance(replicas, int) and replicas > 1:
        yield read_at(file, "sharding", Sharding.FSDP_HYBRID.value, *place)
    if file.get("optimizer", "implementation") == "fused_opt_states_bf16":
        yield read_at(file, "optimizer_dtype", "bf16", "optimizer", "implementation")


def _read_subcommand(file: ConfigFile) -> Iterator[Read]:
    """Yield the choice of activation checkpointing: a word after the flags, or after a value."""
    if file.format is not Format.SHELL:
        return
    for path, entry in file.entries.items():
        for word in entry.value if isinstance(entry.value, list) else [entry.value]:
            chosen = _chosen(word)
            if chosen in list(Checkpointing) and len(path) > 1:
                yield read_at(file, "checkpointing", chosen, *path)


def _without_subcommand(flags: ConfigFile) -> ConfigFile:
    """Return flags without the subcommand, which the last of them may have for a value."""
    entries = {path: replace(one, value=_own(one.value)) for path, one in flags.entries.items()}
    return replace(flags, entries=entries)


def _own(value: Any) -> Any:
    if isinstance(value, list):
        own = [one for one in value if _chosen(one) is None]
        return own[0] if len(own) == 1 else own
    return value if _chosen(value) is None else True


def _chosen(word: object) -> str | None:
    """Return what comes after ``activation-checkpoint:``, or None where that is not the word."""
    name, separator, chosen = str(word).replace("_", "-").partition(":")
    return chosen if f"{name}{separator}" == _SUBCOMMAND else None


FORMAT = TrainerFormat(
    trainer="torchtitan",
    needs=(Needs(package="torchtitan", releases="==0.3.0"),),
    decides=frozenset(
        {
            "method",
            "numerics",
            *WITHOUT_OWN_DTYPES,
            "optimizer",
            "optimizer_impl",
            "sharding",
            "offload",
            "checkpointing",
            "expandable_segments",
        }
    ),
    ways=(
        Way(methods=FULL, shardings=FSDP[1:2], numerics=tuple(_NUMERICS), alone=True),
        Way(methods=FULL, shardings=FSDP, numerics=tuple(_NUMERICS), alone=False),
    ),
    values={
        **WITHOUT_OWN_DTYPES,
        "optimizer": (Optimizer.ADAMW,),
        "optimizer_impl": tuple(OptimizerImpl),
        "checkpointing": tuple(_CHECKPOINTING),
    },
    refusals=(
        Refusal(
            when={"method": ADAPTERS},
            text="its flags cannot add adapters: LoRAConverter needs a configuration in Python",
        ),
        *OFFLOAD_REFUSALS,
    ),
    marks=frozenset({_ENTRY, "training.local_batch_size"}),
    suffix=".sh",
    write=write,
    read=read,
)
