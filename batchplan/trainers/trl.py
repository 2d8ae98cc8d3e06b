"""TRL's ``trl sft``: one YAML of ScriptArguments, SFTConfig and ModelConfig.

Key names are those that every release from 0.26 on accepts, the first with
``bnb_4bit_quant_storage``. It starts by torchrun, or Python alone, rather than by ``trl sft``,
which hands over to ``accelerate launch`` and so to whatever the user's own accelerate config says;
the script is the same. Sources: trl ``scripts/sft.py``, ``trainer/sft_config.py``,
``trainer/model_config.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.spec import Loss, Method, Numerics, Sharding
from batchplan.trainers import accelerate
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import ADAPTERS, FSDP, ZERO, Refusal, TrainerFormat
from batchplan.trainers.keymap import Key, read_at, written
from batchplan.trainers.keymap import read as read_keys
from batchplan.trainers.policies.rows import Value
from batchplan.trainers.reading import Read, Reading
from batchplan.trainers.releases import Needs
from batchplan.trainers.shared import training_arguments as arguments
from batchplan.trainers.shared.adapters import scale
from batchplan.trainers.shared.combine import CAST, reading
from batchplan.trainers.shared.deepspeed_json import auto_config, is_deepspeed, to_json
from batchplan.trainers.shared.flags import flags_of
from batchplan.trainers.shared.launch import (
    ALLOCATOR,
    EXPANDABLE,
    launch_file,
    one_device,
    processes,
    read_launch,
)
from batchplan.trainers.shared.model_kwargs import (
    ALL_LINEAR,
    ATTENTION,
    ATTENTION_ALIASES,
    LOAD_DTYPE,
    read_model,
    targets_from,
)
from batchplan.trainers.shared.needs import BESIDE_TRANSFORMERS, FSDP_ARGUMENTS
from batchplan.trainers.shared.precision import WITHOUT_OWN_DTYPES, load_dtype
from batchplan.trainers.shared.summary import header, start
from batchplan.trainers.shared.unplanned import unplanned
from batchplan.trainers.shared.ways import (
    ADAPTER_WAYS,
    ARGUMENT_VALUES,
    DECIDED,
    FULL_WAYS,
    REFUSALS,
)
from batchplan.trainers.shared.yaml_text import Setting, to_yaml

_DATASET = '"${DATASET:?name or folder of the data}"'
_QUANTISED = {"method": ADAPTERS[1:]}
_MODEL = (
    Key(key="model_name_or_path", option="model"),
    Key(key="attn_implementation", option="attention", words=ATTENTION, aliases=ATTENTION_ALIASES),
    Key(
        key="model_init_kwargs.attn_implementation",
        option="attention",
        words=ATTENTION,
        aliases=ATTENTION_ALIASES,
        is_written=False,
    ),
)
_DATA = (
    Key(key="max_length", option="seq_len", why="longer rows are cut"),
    Key(key="max_seq_length", option="seq_len", is_written=False),
    Key(key="packing", option="packing", is_written=False),
)
_LORA = (
    Key(key="lora_r", option="lora_rank", when={"method": ADAPTERS}),
    Key(key="lora_dropout", option="lora_dropout", when={"method": ADAPTERS}),
)
_NESTED = Key(key="use_bnb_nested_quant", option="double_quant", when=_QUANTISED)
_LAUNCHER = (
    Key(key="num_processes", option="num_ranks", is_written=False),
    Key(key="num_machines", option="num_nodes", is_written=False),
)
"""``trl sft`` hands keys that it does not know to ``accelerate launch``."""
_SHIPPED: dict[str, dict[str, Value]] = {
    "single_gpu": {"sharding": Sharding.DDP.value, "num_ranks": 1},
    "multi_gpu": {"sharding": Sharding.DDP.value, "num_ranks": 8},
    "fsdp1": {"sharding": Sharding.FSDP_FULL.value, "fsdp_version": 1, "num_ranks": 8},
    "fsdp2": {"sharding": Sharding.FSDP_FULL.value, "fsdp_version": 2, "num_ranks": 8},
    "zero1": {"sharding": Sharding.ZERO1.value, "num_ranks": 8},
    "zero2": {"sharding": Sharding.ZERO2.value, "num_ranks": 8},
    "zero3": {"sharding": Sharding.ZERO3.value, "num_ranks": 8},
}
"""What TRL's own accelerate configs say. Source: trl ``accelerate_configs/*.yaml``."""
_LEFT_OUT = (
    "activation_offloading",
    "gradient_checkpointing_kwargs.selective",
    "load_in_8bit",
    "use_dora",
    "use_liger_kernel",
)
"""Switches that change memory in a way that is not modelled; liger is layer kernels only here."""
_CALLS = ("SFTConfig", "ModelConfig", "TrainingArguments", "SFTTrainer")
"""Older scripts give the trainer ``TrainingArguments``, and the length to itself."""
_PROGRAMS = ("trl", "trl.scripts.sft")
_LAUNCH_MARK = "distributed_type"
_OF_LAUNCHER = frozenset(
    {"sharding", "fsdp_version", "offload", "zero_buckets", "checkpointing"}
    | {"num_ranks", "num_nodes"}
)
"""What a config of ``accelerate launch`` decides beside TRL's own; dtypes are TRL's."""


_NO_FP16 = Refusal(
    when={
        "method": (Method.QLORA.value,),
        "numerics": (Numerics.FP16.value, Numerics.FP16_AUTOCAST.value),
    },
    text="its adapters of a quantised model are bf16, whose gradients torch's fp16 loss scaler "
    "does not take on a GPU (--numerics bf16 or fp32)",
)


def write(job: Job) -> tuple[EmittedFile, ...]:
    """Return the YAML of a plan, DeepSpeed's JSON where it is needed, and how to start it."""
    recipe = job.plan.recipe
    name, deepspeed = f"{job.stem}.yaml", f"{job.stem}.ds.json"
    main = EmittedFile(name=name, text=to_yaml(_header(job), _settings(job, deepspeed)))
    beside: tuple[EmittedFile, ...] = ()
    if recipe.sharding in ZERO:
        beside = (EmittedFile(name=deepspeed, text=to_json(auto_config(recipe))),)
    command = f"{processes(job)} -m trl.scripts.sft --config {name} --dataset_name {_DATASET}"
    environment = {**one_device(job), **arguments.hybrid_environment(job)}
    launch = launch_file(job, command, environment=environment)
    return main, *beside, launch


def _header(job: Job) -> Iterator[str]:
    is_chunked = job.plan.recipe.loss is Loss.CHUNKED
    loss = [("Loss", "in chunks of tokens, by TRL itself; there is no key for it")]
    return header(
        job,
        FORMAT,
        ("Data", f"rows of {job.plan.batch.seq_len} tokens; shorter ones make smaller steps"),
        *(loss if is_chunked else []),
        start(job, data=True),
    )


def _settings(job: Job, deepspeed: str) -> Iterator[Setting]:
    recipe, options = job.plan.recipe, job.options()
    yield from written(_MODEL, options)
    yield Setting("dtype", load_dtype(recipe), "TRL loads in float32 otherwise")
    yield from _adapters(job)
    yield from written(_DATA, options)
    yield Setting("packing", False)
    yield Setting("output_dir", "out")
    yield from arguments.batch_and_rate(job)
    yield from arguments.optimizer(recipe)
    yield from arguments.precision(recipe)
    yield from arguments.checkpointing(recipe)
    yield from arguments.fsdp(job)
    yield from arguments.deepspeed(recipe, deepspeed)


def _adapters(job: Job) -> Iterator[Setting]:
    recipe, options = job.plan.recipe, job.options()
    yield Setting("use_peft", recipe.method is not Method.FULL, recipe.method.value)
    if recipe.method is Method.FULL:
        return
    yield from written(_LORA, options)
    yield scale(recipe)
    yield Setting("lora_target_modules", *_targets(recipe.lora_targets))
    if recipe.method is Method.QLORA:
        yield Setting("load_in_4bit", True)
        yield Setting("bnb_4bit_quant_type", "nf4")
        yield from written((_NESTED,), options)
        if recipe.sharding in FSDP:
            why = "as dtype, or FSDP does not shard the 4-bit weights"
            yield Setting("bnb_4bit_quant_storage", load_dtype(recipe), why)


def _targets(lora_targets: str) -> tuple[list[str], str]:
    """Return the names, and a comment; TRL unpacks a list of one, which peft takes for a pattern.

    Source: trl ``trainer/model_config.py, ModelConfig.__post_init__``; peft
    ``tuners/tuners_utils.py, check_target_module_exists``.
    """
    names = lora_targets.split(",")
    if len(names) > 1 or lora_targets == ALL_LINEAR:
        return names, ""
    return names * 2, "twice, or TRL makes one name a pattern over whole names"


def read(files: Sequence[ConfigFile]) -> Reading:
    """Return what the files of one run say."""
    reads: list[Read] = []
    problems: list[Finding] = []
    for file in files:
        for part in _parts(file):
            found, unknown = _read_part(part, files)
            reads += found
            problems += unknown
        reads += [*_of_trainer(file), *_of_launcher(file, files)]
    found, unknown = read_model(files)
    reads = [*reads, *found, *read_launch(files)]
    return reading("trl", map(_number, reads), [*problems, *unknown])


def _parts(file: ConfigFile) -> Iterator[ConfigFile]:
    """Yield TRL's keys: all of a YAML file, calls of a script, flags of its command."""
    if file.format is Format.PYTHON:
        yield from (file.under(name) for name in file.data if name in _CALLS)
    elif file.format is Format.SHELL:
        yield from (part for word in _PROGRAMS for part in flags_of([file], word))
    elif not is_deepspeed(file) and _LAUNCH_MARK not in file:
        yield file


def _read_part(part: ConfigFile, files: Sequence[ConfigFile]) -> tuple[list[Read], list[Finding]]:
    found, problems = arguments.read_arguments(part, files)
    reads = [*_shipped(part), *(one for one in found if one.option != "loss")]
    of_script = part.format is Format.PYTHON
    for keys in (_MODEL, _DATA, _LORA, (_NESTED,), () if of_script else _LAUNCHER):
        more, unknown = read_keys(keys, part)
        reads += more
        problems += unknown
    reads += [*_dtype(part, is_cast=any(one.option == CAST for one in found)), *_method(part)]
    allocator = part.get("env", ALLOCATOR)
    if allocator is not None and part.format is Format.YAML:
        reads.append(read_at(part, "expandable_segments", EXPANDABLE in str(allocator), "env"))
    return reads, [*problems, *unplanned(part, _LEFT_OUT)]


def _dtype(part: ConfigFile, *, is_cast: bool) -> Iterator[Read]:
    """Yield the dtype to load in, and autocast, which is on unless it is switched off."""
    said = [
        path
        for path in (
            ("torch_dtype",),
            ("dtype",),
            ("model_init_kwargs", "torch_dtype"),
            ("model_init_kwargs", "dtype"),
        )
        if isinstance(part.get(*path), str) and part.get(*path) != "auto"
    ]
    is_off = part.get("bf16") is False and not is_cast
    for path in said:
        yield read_at(part, LOAD_DTYPE, str(part.get(*path)).removeprefix("torch."), *path)
    if said and not is_cast and not is_off:
        yield read_at(part, CAST, "bf16", "bf16")
    if is_off and not said:
        yield read_at(part, LOAD_DTYPE, "float32", "dtype")


def _method(part: ConfigFile) -> Iterator[Read]:
    if part.get("load_in_4bit") is True:
        yield read_at(part, "method", Method.QLORA.value, "load_in_4bit")
    elif isinstance(part.get("use_peft"), bool):
        method = Method.LORA if part.get("use_peft") else Method.FULL
        yield read_at(part, "method", method.value, "use_peft")
    targets = part.get("lora_target_modules")
    if isinstance(targets, str | list):
        names = list(dict.fromkeys(map(str, targets))) if isinstance(targets, list) else targets
        yield read_at(part, "lora_targets", targets_from(names), "lora_target_modules")


def _shipped(part: ConfigFile) -> Iterator[Read]:
    name = part.get("accelerate_config")
    if isinstance(name, str):
        for option, value in _SHIPPED.get(name, {}).items():
            yield read_at(part, option, value, "accelerate_config")


def _of_trainer(file: ConfigFile) -> Iterator[Read]:
    """Yield the model that a script names in the call of the trainer itself."""
    for name in ("model", 0):
        if file.format is Format.PYTHON and isinstance(file.get("SFTTrainer", name), str):
            yield read_at(file, "model", file.get("SFTTrainer", name), "SFTTrainer", name)


def _of_launcher(file: ConfigFile, files: Sequence[ConfigFile]) -> Iterator[Read]:
    """Yield the devices and the sharding of a config for ``accelerate launch``."""
    if _LAUNCH_MARK in file:
        says = accelerate.read([file, *(other for other in files if is_deepspeed(other))])
        yield from (one for one in says.reads if one.option in _OF_LAUNCHER)


def _number(one: Read) -> Read:
    """Return a learning rate as a number: TRL's parser makes one of ``2e-5``, a string in YAML."""
    if one.option != "learning_rate" or not isinstance(one.value, str):
        return one
    try:
        return replace(one, value=float(one.value))
    except ValueError:
        return one


FORMAT = TrainerFormat(
    trainer="trl",
    needs=(
        Needs(package="trl", releases=">=0.26"),
        Needs(package="trl", releases=">=0.26,<1.6", when={"loss": (Loss.STANDARD,)}),
        Needs(package="trl", releases=">=1.6", when={"loss": (Loss.CHUNKED,)}),
        FSDP_ARGUMENTS,
        *BESIDE_TRANSFORMERS,
    ),
    decides=DECIDED,
    ways=(*FULL_WAYS, *ADAPTER_WAYS),
    values={
        **WITHOUT_OWN_DTYPES,
        **ARGUMENT_VALUES,
        "zero_buckets": ("auto",),
    },
    refusals=(*REFUSALS, _NO_FP16),
    marks=frozenset(
        {
            "SFTConfig",
            "SFTTrainer",
            "TrlParser",
            "accelerate_config",
            "trl",
            "trl.scripts.sft",
            "use_bnb_nested_quant",
            "use_peft",
        }
    ),
    trains_causal_only=True,
    write=write,
    read=read,
)
