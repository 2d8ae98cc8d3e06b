"""ms-swift: one YAML, which ``swift sft`` makes a command line, of its own keys and the Trainer's.

``torch_dtype`` is the dtype of the weights and decides, where ``bf16`` and ``fp16`` do not, what
autocast runs in. DeepSpeed and FSDP are files, or names of files that it ships. Source: swift
``arguments/sft_args.py``, ``arguments/tuner_args.py``, ``arguments/base_args/``,
``trainers/arguments.py``, ``cli/main.py``, ``config/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.spec import Checkpointing, Method, Offload, Recipe, Sharding
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import ADAPTERS, FSDP, ZERO, TrainerFormat
from batchplan.trainers.keymap import Key, not_understood, read_at, written
from batchplan.trainers.keymap import read as read_keys
from batchplan.trainers.reading import Read, Reading
from batchplan.trainers.releases import Needs
from batchplan.trainers.shared import training_arguments as arguments
from batchplan.trainers.shared.adapters import scale
from batchplan.trainers.shared.combine import CAST, reading
from batchplan.trainers.shared.deepspeed_json import auto_config, is_deepspeed, to_json
from batchplan.trainers.shared.flags import flags_of
from batchplan.trainers.shared.launch import (
    is_one_process,
    launch_file,
    read_launch,
    torchrun_environment,
    visible_devices,
)
from batchplan.trainers.shared.model_kwargs import (
    ATTENTION,
    ATTENTION_ALIASES,
    LOAD_DTYPE,
    targets_from,
)
from batchplan.trainers.shared.needs import DEEPSPEED, FLASH, LIGER, QUANTISED
from batchplan.trainers.shared.precision import DTYPES, WITHOUT_OWN_DTYPES, load_dtype
from batchplan.trainers.shared.summary import header, start
from batchplan.trainers.shared.ways import (
    ADAPTER_WAYS,
    ARGUMENT_VALUES,
    DECIDED,
    FULL_WAYS,
    LOSSES,
    REFUSALS,
)
from batchplan.trainers.shared.yaml_text import Setting, to_yaml

_METHODS = {Method.FULL.value: "full", Method.LORA.value: "lora", Method.QLORA.value: "lora"}
_PROGRAM = "swift"
_TYPES = ("tuner_type", "train_type", "sft_type")
"""The newest name first."""
_BITS = ("quant_bits", "quantization_bit")
_QLORA = {"method": ADAPTERS[1:]}
_KEYS = (
    Key(key="max_length", option="seq_len", why="longer rows are left out, shorter ones padded"),
    Key(key="packing", option="packing", is_written=False),
    Key(
        key="attn_impl",
        option="attention",
        words=ATTENTION,
        aliases={**ATTENTION_ALIASES, "flash_attn": "flash", "flash_attention_4": "flash"},
    ),
    arguments.LOSS,
)
_LORA = (
    Key(key="lora_rank", option="lora_rank", when={"method": ADAPTERS}),
    Key(key="lora_dropout", option="lora_dropout", when={"method": ADAPTERS}),
    Key(key="bnb_4bit_use_double_quant", option="double_quant", when=_QLORA),
)
_SHIPPED = {
    "zero0": (Sharding.DDP, Offload.NONE),
    "zero1": (Sharding.ZERO1, Offload.NONE),
    "zero2": (Sharding.ZERO2, Offload.NONE),
    "zero2_offload": (Sharding.ZERO2, Offload.OPTIMIZER),
    "zero3": (Sharding.ZERO3, Offload.NONE),
    "zero3_offload": (Sharding.ZERO3, Offload.PARAMS),
}
"""Files of ``swift/config`` and what is in them."""
_FSDP2 = "fsdp2"
"""The one for FSDP, which shards fully and checkpoints."""
_DERIVED = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp16"}
"""Autocast where nothing but ``torch_dtype`` is given."""


def write(job: Job) -> tuple[EmittedFile, ...]:
    """Return the YAML of a plan, the file that shards beside it, and how to start it."""
    name, beside = f"{job.stem}.yaml", _file_beside(job)
    main = EmittedFile(name=name, text=to_yaml(_header(job), _settings(job, beside)))
    environment = {
        **visible_devices(job),
        **({} if is_one_process(job) else torchrun_environment(job)),
        **arguments.hybrid_environment(job),
    }
    launch = launch_file(job, f"swift sft {name}", environment=environment)
    return (main, launch) if beside is None else (main, beside, launch)


def _file_beside(job: Job) -> EmittedFile | None:
    recipe = job.plan.recipe
    if recipe.sharding in ZERO:
        return EmittedFile(name=f"{job.stem}.ds.json", text=to_json(auto_config(recipe)))
    if recipe.sharding in FSDP:
        return EmittedFile(name=f"{job.stem}.fsdp.json", text=to_json(_fsdp(recipe)))
    return None


def _fsdp(recipe: Recipe) -> dict[str, Any]:
    is_kept = recipe.sharding is Sharding.FSDP_GRAD_OP
    words = ["shard_grad_op" if is_kept else "full_shard", "auto_wrap"]
    if recipe.offload is Offload.PARAMS:
        words.append("offload")
    return {
        "fsdp": " ".join(words),
        "fsdp_config": {
            "fsdp_version": recipe.fsdp_version,
            "reshard_after_forward": not is_kept,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "cpu_ram_efficient_loading": True,
            "state_dict_type": "SHARDED_STATE_DICT",
            "activation_checkpointing": recipe.checkpointing is Checkpointing.FULL,
        },
    }


def _header(job: Job) -> Iterator[str]:
    return header(
        job,
        FORMAT,
        ("Data", f"{job.plan.batch.seq_len} tokens a row; name yours below"),
        start(job),
    )


def _settings(job: Job, beside: EmittedFile | None) -> Iterator[Setting]:
    recipe, options = job.plan.recipe, job.options()
    yield Setting("model", job.model.id)
    yield Setting("use_hf", True, "the name is Hugging Face's, not ModelScope's")
    yield from _method(recipe)
    yield from written(_LORA, options)
    yield Setting("dataset", ["data.jsonl"], "yours")
    yield from written(_KEYS, options)
    yield Setting("packing", False)
    yield Setting("output_dir", "out")
    yield from arguments.batch_and_rate(job)
    yield from arguments.optimizer(recipe)
    yield Setting("torch_dtype", load_dtype(recipe), "of the weights")
    yield from arguments.precision(recipe)
    yield from _checkpointing(recipe)
    if beside is not None:
        key = "deepspeed" if recipe.sharding in ZERO else "fsdp"
        yield Setting(key, beside.name, f"{recipe.sharding.value}; start beside it")
    yield from _accelerator(job)


def _method(recipe: Recipe) -> Iterator[Setting]:
    yield Setting("tuner_type", _METHODS[recipe.method.value], recipe.method.value)
    if recipe.method is Method.QLORA:
        yield Setting("quant_method", "bnb")
        yield Setting("quant_bits", 4)
        yield Setting("bnb_4bit_quant_type", "nf4")
        yield Setting("bnb_4bit_compute_dtype", load_dtype(recipe))
        if recipe.sharding in FSDP:
            why = "else FSDP does not shard them"
            yield Setting("bnb_4bit_quant_storage", load_dtype(recipe), why)
    if recipe.method is not Method.FULL:
        yield scale(recipe)
        yield Setting("target_modules", recipe.lora_targets.split(","))


def _checkpointing(recipe: Recipe) -> Iterator[Setting]:
    """Yield checkpointing; swift patches torch's own, reentrant unless it is told otherwise."""
    yield from arguments.checkpointing(recipe)
    if recipe.checkpointing is Checkpointing.FULL and recipe.sharding in FSDP:
        yield Setting("gradient_checkpointing_kwargs", {"use_reentrant": False})


def _accelerator(job: Job) -> Iterator[Setting]:
    """Yield what accelerate is told, with what swift says where nothing is."""
    for setting in arguments.sync_each_batch(job):
        yield Setting(setting.key, {**setting.value, "dispatch_batches": False}, setting.why)


def read(files: Sequence[ConfigFile]) -> Reading:
    """Return what the files of one run say."""
    found: list[Read | Finding] = []
    for file in files:
        for part in _parts(file):
            found += _read_config(part, files)
    reads = [one for one in found if isinstance(one, Read)]
    problems = [one for one in found if isinstance(one, Finding)]
    return reading("ms-swift", [*reads, *read_launch(files)], problems)


def _parts(file: ConfigFile) -> Iterator[ConfigFile]:
    """Yield swift's keys: all of a YAML file, or the flags of its command."""
    if file.format is Format.SHELL:
        yield from flags_of([file], _PROGRAM)
    elif file.format in (Format.YAML, Format.JSON) and not _is_beside(file):
        yield file


def _is_beside(file: ConfigFile) -> bool:
    """Whether a file says how to shard, and nothing else."""
    return is_deepspeed(file) or ("fsdp_config" in file and "model" not in file)


def _read_config(file: ConfigFile, files: Sequence[ConfigFile]) -> Iterator[Read | Finding]:
    reads, problems = arguments.read_step(file)
    found, unknown = read_keys((*_KEYS, *_LORA), file)
    yield from (*reads, *found)
    yield from (*problems, *unknown)
    yield from _read_method(file)
    if isinstance(file.get("model"), str):
        yield read_at(file, "model", file.get("model"), "model")
    if file.get("target_modules") is not None:
        targets = targets_from(file.get("target_modules"))
        yield read_at(file, "lora_targets", targets, "target_modules")
    yield from arguments.read_checkpointing(file)
    yield from _read_sharding(file, files)
    yield from _read_precision(file)


def _read_method(file: ConfigFile) -> Iterator[Read | Finding]:
    """Yield the method; LoRA over 4-bit weights is QLoRA."""
    kind_key = next((key for key in _TYPES if file.get(key) is not None), _TYPES[0])
    bits_key = next((key for key in _BITS if file.get(key) is not None), _BITS[0])
    kind, bits = file.get(kind_key), file.get(bits_key)
    if kind not in (None, "lora", "full"):
        yield not_understood(file, kind_key, kind)
    elif bits not in (None, 0, 4):
        yield not_understood(file, bits_key, bits)
    elif bits == 4:
        yield read_at(file, "method", Method.QLORA.value, bits_key)
    elif kind is not None:
        yield read_at(file, "method", kind, kind_key)


def _read_precision(file: ConfigFile) -> Iterator[Read]:
    """Yield the dtype to load in and what autocast runs in, which follows from it."""
    load = str(file.get("torch_dtype"))
    if load in DTYPES:
        yield read_at(file, LOAD_DTYPE, load, "torch_dtype")
    given = [half for half in ("bf16", "fp16") if isinstance(file.get(half), bool)]
    if given:
        yield from arguments.read_precision(file)
    elif load in _DERIVED:
        yield read_at(file, CAST, _DERIVED[load], "torch_dtype")


def _read_sharding(file: ConfigFile, files: Sequence[ConfigFile]) -> Iterator[Read]:
    shipped = _SHIPPED.get(str(file.get("deepspeed")))
    if shipped is not None:
        sharding, offload = shipped
        yield read_at(file, "sharding", sharding.value, "deepspeed")
        yield read_at(file, "offload", offload.value, "deepspeed")
    yield from arguments.read_sharding(file, files)
    if file.get("fsdp") == _FSDP2:
        yield read_at(file, "sharding", Sharding.FSDP_FULL.value, "fsdp")
        yield read_at(file, "fsdp_version", 2, "fsdp")
        yield read_at(file, "checkpointing", Checkpointing.FULL.value, "fsdp")
    for other in files:
        if PurePath(other.name).name == PurePath(str(file.get("fsdp"))).name:
            yield from arguments.read_sharding(other, files)
            if other.get("fsdp_config", "activation_checkpointing") is True:
                yield from arguments.read_checkpointing(other)


FORMAT = TrainerFormat(
    trainer="ms-swift",
    needs=(
        Needs(package="ms-swift", releases=">=4.6"),
        DEEPSPEED,
        *QUANTISED,
        LIGER,
        FLASH,
    ),
    decides=DECIDED | {"loss"},
    ways=(*FULL_WAYS, *ADAPTER_WAYS),
    values={
        **WITHOUT_OWN_DTYPES,
        **ARGUMENT_VALUES,
        "loss": LOSSES,
    },
    refusals=REFUSALS,
    marks=frozenset({"tuner_type", "train_type", "attn_impl", _PROGRAM}),
    trains_causal_only=True,
    write=write,
    read=read,
)
