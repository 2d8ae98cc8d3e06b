"""Axolotl's keys beside our option names, and how a config is read back.

Source: axolotl ``utils/schemas/config.py, AxolotlInputConfig``; ``utils/schemas/training.py``,
``peft.py``, ``fsdp.py``; ``integrations/liger/args.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batchplan.configfile import Change, ConfigFile, Edit, Finding, Format, Severity
from batchplan.spec import Checkpointing, Loss, Method, Offload, Sharding
from batchplan.trainers.format import ADAPTERS, FSDP
from batchplan.trainers.keymap import Key, not_understood, read_at
from batchplan.trainers.keymap import read as read_keys
from batchplan.trainers.reading import Read, Reading
from batchplan.trainers.shared import training_arguments as arguments
from batchplan.trainers.shared.combine import CAST, reading
from batchplan.trainers.shared.deepspeed_json import is_deepspeed
from batchplan.trainers.shared.launch import read_launch
from batchplan.trainers.shared.model_kwargs import (
    ALL_LINEAR,
    ATTENTION,
    ATTENTION_ALIASES,
    LOAD_DTYPE,
    targets_from,
)
from batchplan.trainers.shared.optimizers import read_optim

LIGER = "axolotl.integrations.liger.LigerPlugin"
_CUT = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
_OLDER_ATTENTION = {
    "flash_attention": "flash",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}
"""Flags of their own before ``attn_implementation``."""
_METHODS = {"lora": "lora", "qlora": "qlora"}
_HALVES = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16"}
"""Keys that switch autocast on, in the order in which they count."""
_LOADED = {"bf16": "bfloat16", "fp16": "float16"}
_QLORA = {"method": ADAPTERS[1:]}
KEYS = (
    Key(key="base_model", option="model"),
    Key(key="sequence_len", option="seq_len", why="longer rows are dropped"),
    Key(key="sample_packing", option="packing", is_written=False),
    Key(key="micro_batch_size", option="micro_batch"),
    Key(
        key="gradient_accumulation_steps",
        option="accum_steps",
        why="x {micro_batch} x {num_ranks} devices = {global_batch:,} sequences a step",
    ),
    Key(key="num_epochs", option="epochs"),
    Key(key="max_steps", option="max_steps", is_written=False),
    Key(key="learning_rate", option="learning_rate", why="{rule} rule"),
    Key(key="lr_scheduler", option="schedule"),
    Key(key="warmup_steps", option="warmup_steps", why="optimizer steps"),
    Key(key="warmup_ratio", option="warmup_ratio", is_written=False),
    Key(key="adam_beta2", option="beta2", why="half-life in tokens kept"),
    Key(key="attn_implementation", option="attention", words=ATTENTION, aliases=ATTENTION_ALIASES),
    Key(key="adapter", option="method", words=_METHODS, when={"method": ADAPTERS}),
    Key(key="lora_r", option="lora_rank", when={"method": ADAPTERS}),
    Key(key="lora_dropout", option="lora_dropout", when={"method": ADAPTERS}),
    Key(key="bnb_config_kwargs.bnb_4bit_use_double_quant", option="double_quant", when=_QLORA),
    Key(
        key="embeddings_skip_upcast",
        option="frozen_upcast",
        words={False: True, True: False},
        when={**_QLORA, "sharding": FSDP},
        why="else FSDP gets them in fp32",
    ),
)
_FULL = Checkpointing.FULL.value
_CHECKPOINTING = Key(
    key="gradient_checkpointing",
    option="checkpointing",
    words={_FULL: True, Checkpointing.NONE.value: False},
    aliases={"offload": _FULL, "offload_disk": _FULL},
    is_written=False,
)


def read(files: Sequence[ConfigFile]) -> Reading:
    """Return what the files of one run say."""
    configs = [
        file
        for file in files
        if file.format in (Format.YAML, Format.JSON) and not is_deepspeed(file)
    ]
    found = [one for file in configs for one in _read_config(file, files)]
    reads = [one for one in found if isinstance(one, Read)]
    problems = [one for one in found if isinstance(one, Finding)]
    last = {read.option: read.value for read in reads}
    reads += [one for file in configs for one in _read_precision(file, last)]
    return reading("axolotl", [*reads, *read_launch(files)], problems)


def _read_config(file: ConfigFile, files: Sequence[ConfigFile]) -> Iterator[Read | Finding]:
    reads, problems = read_keys((*KEYS, _CHECKPOINTING), file)
    yield from reads
    yield from problems
    yield from _read_optimizer(file)
    yield from _read_loss(file)
    yield from _read_beside(file)
    yield from _read_adapters(file)
    yield from arguments.read_sharding(file, files)
    yield from _read_fsdp(file)


def _read_optimizer(file: ConfigFile) -> tuple[Read | Finding, ...]:
    found = read_optim(file, "optimizer")
    return found if isinstance(found, tuple) else (found,)


def _read_loss(file: ConfigFile) -> Iterator[Read | Finding]:
    """Yield a fused loss, where the plugin that brings it is there."""
    plugins = file.get("plugins")
    names = [str(name) for name in plugins] if isinstance(plugins, list) else []
    for key, plugin in (("liger_fused_linear_cross_entropy", LIGER), ("cut_cross_entropy", _CUT)):
        if file.get(key) is not True:
            continue
        if any(plugin.rpartition(".")[2] in name for name in names):
            yield read_at(file, "loss", Loss.FUSED.value, key)
        else:
            yield _plugin_missing(file, key, plugin, names)
    if file.get("chunked_cross_entropy") is True:
        yield not_understood(file, "chunked_cross_entropy", True)


def _plugin_missing(file: ConfigFile, key: str, plugin: str, names: list[str]) -> Finding:
    return Finding(
        code="plugin-missing",
        severity=Severity.WARNING,
        text=f"{key} does nothing without its plugin: whole logits are held.",
        fix=f"Add {plugin} to plugins.",
        file=file.name,
        line=file.line(key),
        key=key,
        edits=(Edit(change=Change.SET, path=("plugins",), value=[*names, plugin]),),
    )


def _read_beside(file: ConfigFile) -> Iterator[Read | Finding]:
    total, micro = file.get("batch_size"), file.get("micro_batch_size", default=1)
    if type(total) is int and file.get("gradient_accumulation_steps") is None:
        passes = total // micro if type(micro) is int and micro > 0 else total
        yield Finding(
            code="batch-size-ignored",
            severity=Severity.WARNING,
            text="batch_size alone changes nothing: gradient_accumulation_steps is 1 without it.",
            fix=f"Write gradient_accumulation_steps: {passes}, and no batch_size.",
            file=file.name,
            line=file.line("batch_size"),
            key="batch_size",
        )
    for key, value in _OLDER_ATTENTION.items():
        if file.get(key) is True:
            yield read_at(file, "attention", value, key)
    for key in ("selective_checkpointing", "activation_offloading", "load_in_8bit"):
        if file.get(key):
            yield not_understood(file, key, file.get(key))
    path = ("gradient_checkpointing_kwargs", "use_reentrant")
    if isinstance(file.get(*path), bool):
        yield read_at(file, "reentrant", file.get(*path), *path)


def _read_adapters(file: ConfigFile) -> Iterator[Read]:
    if file.get("lora_target_linear") is True:
        yield read_at(file, "lora_targets", ALL_LINEAR, "lora_target_linear")
    elif file.get("lora_target_modules"):
        targets = targets_from(file.get("lora_target_modules"))
        yield read_at(file, "lora_targets", targets, "lora_target_modules")


def _read_fsdp(file: ConfigFile) -> Iterator[Read]:
    config = file.under("fsdp_config")
    if not config.entries:
        return

    def get(name: str) -> Any:
        """Return a value under its name, or under the older one with a prefix."""
        return config.get(name, default=config.get(f"fsdp_{name}"))

    replicas = file.get("dp_replicate_size")
    if type(replicas) is int and replicas > 1:
        sharding = Sharding.FSDP_HYBRID
    elif get("reshard_after_forward") is False:
        sharding = Sharding.FSDP_GRAD_OP
    else:
        sharding = Sharding.FSDP_FULL
    yield read_at(file, "sharding", sharding.value, "fsdp_config")
    if get("offload_params") is True:
        yield read_at(config, "offload", Offload.PARAMS.value, "offload_params")
    if get("activation_checkpointing") is True:
        yield read_at(config, "checkpointing", _FULL, "activation_checkpointing")


def _read_precision(file: ConfigFile, last: Mapping[str, object]) -> Iterator[Read]:
    """Yield the dtype to load in or to cast to; both keys off is fp32.

    Args:
        file: the config.
        last: what else was read: FSDP leaves the weights of a full fine-tune as they are loaded.
    """
    is_full = last.get("method", Method.FULL.value) == Method.FULL.value
    keeps_half = is_full and last.get("sharding") in FSDP
    for key, half in _HALVES.items():
        if file.get(key) is True:
            option, value = (LOAD_DTYPE, _LOADED[half]) if keeps_half else (CAST, half)
            yield read_at(file, option, value, key)
            return
    if file.get("bf16") is False:
        dtype = _LOADED["fp16"] if file.get("float16") is True else "float32"
        yield read_at(file, LOAD_DTYPE, dtype, "bf16")
