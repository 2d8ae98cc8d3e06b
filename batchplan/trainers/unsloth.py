"""Unsloth: a Python script, for one device or one process a device (DDP by torchrun).

Sources: unsloth ``models/loader.py, FastLanguageModel.from_pretrained``; ``models/llama.py,
get_peft_model``; ``models/rl.py`` (what it makes of ``bf16`` and ``fp16``); keys of SFTConfig are
TRL's. Left out: its own FSDP 2 and DeepSpeed support, and ``use_gradient_checkpointing="unsloth"``,
which moves checkpoints to host memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.spec import Checkpointing, Method, Numerics, Offload, Recipe
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import (
    ADAPTERS,
    AUTOCAST,
    COMMON,
    DDP,
    FULL,
    Refusal,
    TrainerFormat,
    Way,
)
from batchplan.trainers.keymap import Key, read_at, written
from batchplan.trainers.keymap import read as read_keys
from batchplan.trainers.reading import Read, Reading, only_last
from batchplan.trainers.releases import Needs
from batchplan.trainers.shared import training_arguments as arguments
from batchplan.trainers.shared.adapters import scale
from batchplan.trainers.shared.combine import CAST
from batchplan.trainers.shared.launch import (
    launch_file,
    one_device,
    processes,
    read_launch,
)
from batchplan.trainers.shared.model_kwargs import ALL_LINEAR, targets_from
from batchplan.trainers.shared.optimizers import IMPLEMENTATIONS, OPTIMIZERS
from batchplan.trainers.shared.precision import autocast
from batchplan.trainers.shared.summary import header, start
from batchplan.trainers.shared.unplanned import unplanned
from batchplan.trainers.shared.ways import CHECKPOINTINGS
from batchplan.trainers.shared.yaml_text import Setting

_DATA = '"${DATASET:?name or folder of the data}"'
_CLASSES = ("FastLanguageModel", "FastModel", "FastVisionModel")
_CONFIGS = ("SFTConfig", "TrainingArguments", "UnslothTrainingArguments")
_CHECKPOINTING = Key(
    key="use_gradient_checkpointing",
    option="checkpointing",
    words={Checkpointing.FULL.value: True, Checkpointing.NONE.value: False},
    aliases={"unsloth": Checkpointing.FULL.value},
    why="checkpointing {checkpointing}",
)
_LOADING = (
    Key(key="model_name", option="model"),
    Key(key="0", option="model", is_written=False),
    Key(key="max_seq_length", option="seq_len"),
)
_LORA = (
    Key(key="r", option="lora_rank"),
    Key(key="lora_dropout", option="lora_dropout"),
)
_DATA_KEYS = (
    Key(key="max_length", option="seq_len", why="longer rows are cut"),
    Key(key="packing", option="packing", is_written=False),
)
_SIXTEEN_BIT = ("load_in_16bit", "load_in_8bit", "load_in_fp8")
"""Each means that the base is not 4-bit; what 8 bits hold is not modelled."""
_LEFT_OUT = ("load_in_8bit", "load_in_fp8", "unsloth_tiled_mlp", "fast_inference")


_LEFT_TO_THE_MODEL = frozenset(
    {"loss", "checkpointing", "reentrant", "sharding", "offload", "zero_buckets"}
    | {"fsdp_version", "sync_each_batch"}
)
"""What SFTConfig may say, and the model's own code decides or this module leaves out."""


class _Code(str):
    """A value that is written as it is, and not as text in quotes."""

    __slots__ = ()


_TRAINER = (
    Setting("model", _Code("model")),
    Setting("processing_class", _Code("tokenizer")),
    Setting("args", _Code("args")),
    Setting("train_dataset", _Code("data")),
)


def write(job: Job) -> tuple[EmittedFile, ...]:
    """Return the script of a plan, and how to start it."""
    name = f"{job.stem}.py"
    main = EmittedFile(name=name, text="\n".join(_lines(job)) + "\n")
    command = f"{processes(job)} {name} {_DATA}"
    return main, launch_file(job, command, environment=one_device(job))


def _lines(job: Job) -> Iterator[str]:
    yield from (f"# {line}".rstrip() for line in _header(job))
    yield from (
        "import sys",
        "",
        "from unsloth import FastLanguageModel  # before torch, transformers and trl",
        "",
        "import torch",
        "from datasets import load_dataset",
        "from trl import SFTConfig, SFTTrainer",
        "",
    )
    adapts = job.plan.recipe.method is not Method.FULL
    yield from _call("model, tokenizer = FastLanguageModel.from_pretrained", _loading(job))
    if adapts:
        yield from _call("model = FastLanguageModel.get_peft_model", _adapters(job), "model")
    yield from _call("args = SFTConfig", _arguments(job))
    yield 'data = load_dataset(sys.argv[1], split="train")'
    yield from _call("trainer = SFTTrainer", _TRAINER)
    yield "trainer.train()"


def _header(job: Job) -> Iterator[str]:
    return header(
        job,
        FORMAT,
        ("Data", f"rows of {job.plan.batch.seq_len} tokens; shorter ones make smaller steps"),
        ("Loss", "fused, and attention and kernels of its own; there are no keys for them"),
        start(job, data=True),
    )


def _call(target: str, settings: Iterable[Setting], first: str = "") -> Iterator[str]:
    yield f"{target}("
    if first:
        yield f"    {first},"
    for setting in settings:
        yield f"    {setting.key}={_literal(setting.value)}," + (
            f"  # {setting.why}" if setting.why else ""
        )
    yield ")"


def _literal(value: Any) -> str:
    """Return a value as Python, with the quotes that formatters want."""
    if isinstance(value, _Code):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _loading(job: Job) -> Iterator[Setting]:
    recipe = job.plan.recipe
    is_full = recipe.method is Method.FULL
    yield from written(_LOADING, job.options())
    yield Setting("dtype", _Code(f"torch.{_dtype(recipe)}"), f"numerics {recipe.numerics.value}")
    yield Setting("load_in_4bit", recipe.method is Method.QLORA, "True by default")
    if recipe.method is Method.LORA:
        yield Setting("load_in_16bit", True)
    if recipe.method is Method.QLORA:
        # Its own 4-bit copies of well-known models leave some layers in 16 bits.
        yield Setting("use_exact_model_name", True, "quantise this very model, all of it")
    if is_full:
        yield Setting("full_finetuning", True)
        yield Setting("float32_mixed_precision", recipe.numerics in AUTOCAST, "fp32 weights")
        yield from written((_CHECKPOINTING,), job.options())


def _dtype(recipe: Recipe) -> str:
    return "float16" if recipe.numerics is Numerics.FP16_AUTOCAST else "bfloat16"


def _adapters(job: Job) -> Iterator[Setting]:
    targets = job.plan.recipe.lora_targets
    yield from written(_LORA, job.options())
    yield scale(job.plan.recipe)
    # A single word would be a pattern over whole names.
    names = targets if targets == ALL_LINEAR else targets.split(",")
    yield Setting("target_modules", names)
    yield from written((_CHECKPOINTING,), job.options())


def _arguments(job: Job) -> Iterator[Setting]:
    recipe = job.plan.recipe
    yield Setting("output_dir", "out")
    yield from written(_DATA_KEYS, job.options())
    yield from arguments.batch_and_rate(job)
    yield from arguments.optimizer(recipe)
    cast = autocast(recipe)
    yield Setting("bf16", cast == "bf16")
    yield Setting("fp16", cast == "fp16")


def read(files: Sequence[ConfigFile]) -> Reading:
    """Return what the files of one run say."""
    reads: list[Read] = []
    problems: list[Finding] = []
    for file in files:
        if file.format is Format.PYTHON:
            found, unknown = _read_script(file)
            reads += found
            problems += unknown
    reads += read_launch(files)
    return Reading(trainer="unsloth", reads=only_last(reads), problems=tuple(problems))


def _read_script(file: ConfigFile) -> tuple[list[Read], list[Finding]]:
    reads: list[Read] = []
    problems: list[Finding] = []
    loading, lora = _block(file, "from_pretrained"), _block(file, "get_peft_model")
    casts: list[Read] = []
    for name in _CONFIGS:
        config = file.under(name)
        found, unknown = arguments.read_arguments(config)
        casts += [one for one in found if one.option == CAST]
        reads += [one for one in found if one.option not in {CAST, *_LEFT_TO_THE_MODEL}]
        problems += unknown
        reads += read_keys(_DATA_KEYS, config)[0]
    for part, keys in ((loading, (*_LOADING, _CHECKPOINTING)), (lora, (*_LORA, _CHECKPOINTING))):
        more, unknown = read_keys(keys, part)
        reads += more
        problems += unknown
    targets = lora.get("target_modules")
    if isinstance(targets, str | list | tuple):
        names = targets_from(list(targets) if isinstance(targets, tuple) else targets)
        reads.append(read_at(lora, "lora_targets", names, "target_modules"))
    method = _method(loading, lora)
    reads += [*method, *_numerics(loading, casts, is_full="full" in [one.value for one in method])]
    return reads, [*problems, *unplanned(loading, _LEFT_OUT)]


def _block(file: ConfigFile, method: str) -> ConfigFile:
    names = [f"{name}.{method}" for name in _CLASSES]
    return file.under(next((name for name in names if name in file), names[0]))


def _method(loading: ConfigFile, lora: ConfigFile) -> list[Read]:
    if loading.get("full_finetuning") is True:
        return [read_at(loading, "method", Method.FULL.value, "full_finetuning")]
    for key in _SIXTEEN_BIT:
        if loading.get(key):
            return [read_at(loading, "method", Method.LORA.value, key)]
    if isinstance(four := loading.get("load_in_4bit"), bool):
        method = Method.QLORA if four else Method.LORA
        return [read_at(loading, "method", method.value, "load_in_4bit")]
    if lora.entries:
        path = next(iter(lora.entries))
        return [read_at(lora, "method", Method.QLORA.value, *path)]
    return []


def _numerics(loading: ConfigFile, casts: list[Read], *, is_full: bool) -> Iterator[Read]:
    """Yield the numerics: autocast in any case, but for a full fine-tune without fp32 weights."""
    dtype = str(loading.get("dtype") or "").removeprefix("torch.")
    has_fp32 = loading.get("float32_mixed_precision") is True or dtype in ("float32", "float16")
    half = "fp16" if dtype == "float16" or "fp16" in [one.value for one in casts] else "bf16"
    autocasts = not is_full or has_fp32 or half == "fp16"
    numerics = f"{half}-autocast" if autocasts else half
    if dtype or casts or is_full:
        yield read_at(loading, "numerics", numerics, "dtype")


FORMAT = TrainerFormat(
    trainer="unsloth",
    needs=(Needs(package="unsloth", releases=">=2026.10"),),
    decides=COMMON | {"checkpointing"},
    ways=(
        Way(methods=ADAPTERS, shardings=DDP, numerics=AUTOCAST),
        Way(methods=FULL, shardings=DDP, numerics=(Numerics.BF16, *AUTOCAST)),
    ),
    values={
        "optimizer": OPTIMIZERS,
        "optimizer_impl": IMPLEMENTATIONS,
        "checkpointing": CHECKPOINTINGS,
    },
    refusals=(
        Refusal(
            when={"offload": (Offload.OPTIMIZER.value, Offload.PARAMS.value)},
            text="it cannot offload without ZeRO or FSDP",
        ),
    ),
    marks=frozenset(
        {
            *(f"{name}.from_pretrained" for name in _CLASSES),
            *(f"{name}.get_peft_model" for name in _CLASSES),
            "UnslothTrainingArguments",
            "full_finetuning",
            "load_in_16bit",
            "use_gradient_checkpointing",
        }
    ),
    suffix=".py",
    trains_causal_only=True,
    write=write,
    read=read,
)
