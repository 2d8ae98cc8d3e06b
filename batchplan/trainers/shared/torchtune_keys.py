"""torchtune's keys, and what a config says by them.

A recipe's own defaults stand where a config is silent: the shipped configs say more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.spec import Checkpointing, Method, OptimizerImpl
from batchplan.trainers.format import ADAPTERS, FSDP
from batchplan.trainers.keymap import Key, not_understood, read_at
from batchplan.trainers.keymap import read as read_keys
from batchplan.trainers.policies.rows import Value
from batchplan.trainers.reading import Read, Reading, only_last
from batchplan.trainers.shared.flags import words_of
from batchplan.trainers.shared.launch import read_launch
from batchplan.trainers.shared.optimizer_classes import read_optimizer
from batchplan.trainers.shared.torchtune_models import component_at, repository_of
from batchplan.trainers.shared.unplanned import unplanned

ALL_LINEAR = "all-linear"
BATCH = (
    Key(key="batch_size", option="micro_batch"),
    Key(
        key="gradient_accumulation_steps",
        option="accum_steps",
        why="x {micro_batch} x {num_ranks} devices = {global_batch:,} sequences a step",
    ),
)
DTYPE = Key(
    key="dtype",
    option="numerics",
    words={"bf16": "bf16", "fp32": "fp32"},
    why="numerics {numerics}",
)
CHECKPOINTING = (
    Key(
        key="enable_activation_checkpointing",
        option="checkpointing",
        words={"full": True, "none": False, "selective": False},
        why="checkpointing {checkpointing}",
    ),
    Key(key="ac_mode", option="checkpointing", words={"selective": "selective"}),
)
SHARDING = (
    Key(
        key="fsdp_reshard_after_forward",
        option="sharding",
        words={"fsdp-full": True, "fsdp-grad-op": False},
        why="{sharding}",
    ),
    Key(
        key="fsdp_cpu_offload",
        option="offload",
        words={"params": True, "none": False},
        when={"sharding": FSDP},
        why="offload {offload}",
    ),
)
LORA = (
    Key(key="model.lora_rank", option="lora_rank", when={"method": ADAPTERS}),
    Key(key="model.lora_dropout", option="lora_dropout", when={"method": ADAPTERS}),
)
LENGTH = Key(key="tokenizer.max_seq_len", option="seq_len")
_ONLY_READ = (
    Key(key="epochs", option="epochs"),
    Key(key="lr_scheduler.num_warmup_steps", option="warmup_steps"),
    Key(key="dataset.packed", option="packing"),
)
ATTENTION = {
    "q_proj": "q_proj",
    "k_proj": "k_proj",
    "v_proj": "v_proj",
    "o_proj": "output_proj",
}
"""Names of layers: transformers' and torchtune's."""
MLP = ("gate_proj", "up_proj", "down_proj")
HEAD = "lm_head"
_NOT_PLANNED = (
    "enable_activation_offloading",
    "optimizer_in_bwd",
    "compile",
    "model.use_dora",
    "tensor_parallel_dim",
)
"""Keys that change memory in ways that are not modelled, where they are on."""
SCHEDULE = "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"


def read(files: Sequence[ConfigFile]) -> Reading:
    """Return what the files of one run say; a recipe's own defaults where a config is silent."""
    reads = list(read_launch(files))
    problems: list[Finding] = []
    reads += [one for file in files for one in _alone(file)]
    num_ranks = {read.option: read.value for read in reads}.get("num_ranks")
    for file in files:
        if file.format is not Format.YAML:
            continue
        for one in _read_config(file, num_ranks):
            if isinstance(one, Read):
                reads.append(one)
            else:
                problems.append(one)
    return Reading(trainer="torchtune", reads=only_last(reads), problems=tuple(problems))


def _alone(file: ConfigFile) -> Iterator[Read]:
    """Yield that one device trains, where a launch command names a recipe for one."""
    if file.format is Format.SHELL:
        for position, word in enumerate(words_of(file)):
            if word.endswith("_finetune_single_device"):
                yield read_at(file, "num_ranks", 1, "program", position)


def _read_config(file: ConfigFile, num_ranks: Value) -> Iterator[Read | Finding]:
    sharding = () if num_ranks == 1 else SHARDING
    keys = (*BATCH, DTYPE, *sharding, *LORA, LENGTH, *_ONLY_READ)
    reads, unknown = read_keys(keys, file)
    yield from reads
    yield from unknown
    yield from _read_model(file)
    yield from _read_checkpointing(file)
    yield from _read_optimizer(file, num_ranks)
    if file.get("lr_scheduler", "_component_") == SCHEDULE:
        yield read_at(file, "schedule", "cosine", "lr_scheduler", "_component_")
    yield from unplanned(file, _NOT_PLANNED)


def _read_optimizer(file: ConfigFile, num_ranks: Value) -> Iterator[Read | Finding]:
    """Yield the optimizer; AdamW that does not say how it runs loops over the tensors of FSDP2.

    Source: torch ``optim/optimizer.py, _default_to_fused_or_foreach``, which knows no DTensor.
    """
    name = file.get("optimizer", "_component_")
    if name is None:
        return
    unsaid = OptimizerImpl.FOREACH if num_ranks in (None, 1) else OptimizerImpl.FOR_LOOP
    yield read_at(file, "optimizer_impl", unsaid.value, "optimizer", "_component_")
    yield from read_optimizer(file.under("optimizer"), name, "_component_")


def _read_checkpointing(file: ConfigFile) -> Iterator[Read]:
    """Yield checkpointing: ``ac_mode`` counts only where the older switch is off."""
    if file.get("enable_activation_checkpointing") is True:
        value, key = Checkpointing.FULL, "enable_activation_checkpointing"
    elif file.get("ac_mode") in (Checkpointing.FULL.value, Checkpointing.SELECTIVE.value):
        value, key = Checkpointing(str(file.get("ac_mode"))), "ac_mode"
    else:
        value, key = Checkpointing.NONE, "enable_activation_checkpointing"
    yield read_at(file, "checkpointing", value.value, key)


def _read_model(file: ConfigFile) -> Iterator[Read | Finding]:
    path = file.get("model", "_component_")
    if path is None:
        return
    found = component_at(str(path))
    if found is None:
        yield not_understood(file, "model._component_", path)
        return
    component, adapts, quantises = found
    place = ("model", "_component_")
    folder = file.get("checkpointer", "checkpoint_dir", default="")
    yield read_at(file, "model", repository_of(component, str(folder)), *place)
    is_quantised = quantises or file.get("model", "quantize_base") is True
    adapter = Method.QLORA if is_quantised else Method.LORA
    yield read_at(file, "method", (adapter if adapts else Method.FULL).value, *place)
    if adapts:
        yield from _read_targets(file)


def _read_targets(file: ConfigFile) -> Iterator[Read]:
    modules = file.get("model", "lora_attn_modules")
    if not isinstance(modules, list):
        return
    names = [ours for ours, theirs in ATTENTION.items() if theirs in modules]
    names += MLP if file.get("model", "apply_lora_to_mlp") is True else ()
    names += (HEAD,) if file.get("model", "apply_lora_to_output") is True else ()
    is_all = names == [*ATTENTION, *MLP]
    targets = ALL_LINEAR if is_all else ",".join(names)
    yield read_at(file, "lora_targets", targets, "model", "lora_attn_modules")
