"""LLaMA-Factory: one YAML, for ``llamafactory-cli train``, of its own keys and the Trainer's.

The Trainer's part is that of the transformers it pins. A model is loaded in the dtype that its
checkpoint was saved in; what trains is then cast to fp32 unless ``pure_bf16`` is on. FSDP comes
from accelerate's launch config alone. Source: llamafactory ``hparams/model_args.py``,
``hparams/finetuning_args.py``, ``hparams/data_args.py``, ``launcher.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.spec import Checkpointing, Method, Numerics, Recipe
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import (
    ADAPTERS,
    AUTOCAST,
    DDP,
    FSDP,
    FULL,
    MASTER,
    ZERO,
    TrainerFormat,
    Way,
)
from batchplan.trainers.keymap import Key, not_understood, read_at, written
from batchplan.trainers.keymap import read as read_keys
from batchplan.trainers.reading import Read, Reading
from batchplan.trainers.releases import Needs
from batchplan.trainers.shared import training_arguments as arguments
from batchplan.trainers.shared.accelerate_yaml import (
    fsdp_settings,
    is_launch_config,
    launch_settings,
    launcher,
    read_devices,
    read_fsdp,
)
from batchplan.trainers.shared.adapters import scale
from batchplan.trainers.shared.combine import reading
from batchplan.trainers.shared.deepspeed_json import auto_config, is_deepspeed, to_json
from batchplan.trainers.shared.launch import (
    is_one_process,
    launch_file,
    one_device,
    read_launch,
    torchrun_environment,
)
from batchplan.trainers.shared.model_kwargs import ALL_LINEAR, LOAD_DTYPE, targets_from
from batchplan.trainers.shared.needs import DEEPSPEED, FLASH, LIGER, QUANTISED
from batchplan.trainers.shared.precision import WITHOUT_OWN_DTYPES
from batchplan.trainers.shared.summary import header, start
from batchplan.trainers.shared.ways import ARGUMENT_VALUES, DECIDED, LOSSES, REFUSALS
from batchplan.trainers.shared.yaml_text import Setting, to_yaml

_OPTIM_TORCH = "OPTIM_TORCH"
"""Its launcher's switch for ``expandable_segments``, which is on by default."""
_ALL = "all"
_METHODS = {Method.FULL.value: "full", Method.LORA.value: "lora", Method.QLORA.value: "lora"}
_QLORA = {"method": ADAPTERS[1:]}
_DATA = (
    Key(key="cutoff_len", option="seq_len", why="longer rows are cut, shorter ones padded"),
    Key(key="packing", option="packing", is_written=False),
    Key(key="neat_packing", option="packing", is_written=False),
)
_MODEL = Key(key="model_name_or_path", option="model")
_ATTENTION = Key(
    key="flash_attn",
    option="attention",
    words={"eager": "disabled", "sdpa": "sdpa", "flash": "fa2"},
    aliases={"auto": "sdpa", "fa3": "flash", False: "eager"},
)
_LOSS = Key(
    key="enable_liger_kernel",
    option="loss",
    words={"fused": True, "standard": False},
    when={"loss": ("fused",)},
    why="fused loss: needs liger-kernel",
)
_OFF = Key(
    key="disable_gradient_checkpointing",
    option="checkpointing",
    words={Checkpointing.FULL.value: False, Checkpointing.NONE.value: True},
    why="checkpointing {checkpointing}",
)
_REENTRANT = Key(
    key="use_reentrant_gc", option="reentrant", when={"checkpointing": (Checkpointing.FULL.value,)}
)
_LORA = (
    Key(key="lora_rank", option="lora_rank", when={"method": ADAPTERS}),
    Key(key="lora_dropout", option="lora_dropout", when={"method": ADAPTERS}),
    Key(key="double_quantization", option="double_quant", when=_QLORA),
)


def write(job: Job) -> tuple[EmittedFile, ...]:
    """Return the YAML of a plan, what shards beside it, and how to start it."""
    sharding = job.plan.recipe.sharding
    name, deepspeed = f"{job.stem}.yaml", f"{job.stem}.ds.json"
    main = EmittedFile(name=name, text=to_yaml(_header(job), _settings(job, deepspeed)))
    if sharding in FSDP:
        accelerate = f"{job.stem}.accelerate.yaml"
        command = f"{launcher(job, accelerate)} -m llamafactory.launcher {name}"
        shards = EmittedFile(name=accelerate, text=to_yaml([_SHARDS], _shards(job)))
        return main, shards, launch_file(job, command)
    launch = launch_file(job, f"llamafactory-cli train {name}", environment=_environment(job))
    if sharding in ZERO:
        return main, EmittedFile(name=deepspeed, text=to_json(auto_config(job.plan.recipe))), launch
    return main, launch


_SHARDS = "How accelerate shards; what it computes in is in the other file."


def _shards(job: Job) -> Iterator[Setting]:
    """Yield accelerate's launch config; checkpointing is LLaMA-Factory's own."""
    yield from launch_settings(job, "FSDP")
    yield from fsdp_settings(job, checkpoints=False)


def _environment(job: Job) -> dict[str, str]:
    if is_one_process(job):
        return one_device(job)
    found = {"FORCE_TORCHRUN": "1", **torchrun_environment(job)}
    return found if job.plan.recipe.expandable_segments else {**found, _OPTIM_TORCH: "0"}


def _header(job: Job) -> Iterator[str]:
    return header(
        job,
        FORMAT,
        ("Data", f"{job.plan.batch.seq_len} tokens a row; name yours below"),
        start(job),
    )


def _settings(job: Job, deepspeed: str) -> Iterator[Setting]:
    recipe, options = job.plan.recipe, job.options()
    yield from written((_MODEL,), options)
    yield Setting("stage", "sft")
    yield Setting("do_train", True)
    yield from _method(recipe)
    yield from written(_LORA, options)
    yield Setting("dataset", "alpaca_en_demo", "yours, by its name in data/dataset_info.json")
    yield from written(_DATA, options)
    yield Setting("packing", False)
    yield Setting("output_dir", "out")
    yield from arguments.batch_and_rate(job)
    yield from arguments.optimizer(recipe)
    yield from _precision(recipe)
    yield from written((_ATTENTION, _OFF, _REENTRANT, _LOSS), options)
    yield from arguments.sync_each_batch(job)
    yield from arguments.deepspeed(recipe, deepspeed)


def _method(recipe: Recipe) -> Iterator[Setting]:
    yield Setting("finetuning_type", _METHODS[recipe.method.value], recipe.method.value)
    if recipe.method is Method.QLORA:
        yield Setting("quantization_bit", 4)
        yield Setting("quantization_method", "bnb")
        yield Setting("quantization_type", "nf4")
    if recipe.method is not Method.FULL:
        is_all = recipe.lora_targets == ALL_LINEAR
        yield scale(recipe)
        yield Setting("lora_target", _ALL if is_all else recipe.lora_targets)


def _precision(recipe: Recipe) -> Iterator[Setting]:
    """Yield the Trainer's mixed precision, or its own way to leave 16-bit weights as they are."""
    if recipe.numerics is Numerics.BF16:
        yield Setting("pure_bf16", True, "numerics bf16; the checkpoint must be bf16")
    else:
        yield from arguments.precision(recipe)


def read(files: Sequence[ConfigFile]) -> Reading:
    """Return what the files of one run say."""
    found: list[Read | Finding] = []
    for file in files:
        if is_launch_config(file):
            found += [*read_devices(file), *_read_shards(file)]
        elif file.format in (Format.YAML, Format.JSON) and not is_deepspeed(file):
            found += _read_config(file, files)
    reads = [one for one in found if isinstance(one, Read)]
    problems = [one for one in found if isinstance(one, Finding)]
    return reading("llamafactory", [*reads, *read_launch(files), *_read_switch(files)], problems)


def _read_shards(file: ConfigFile) -> Iterator[Read | Finding]:
    if file.get("distributed_type") == "FSDP":
        yield from read_fsdp(file)


def _read_config(file: ConfigFile, files: Sequence[ConfigFile]) -> Iterator[Read | Finding]:
    """Yield what its own YAML says."""
    reads, problems = arguments.read_step(file)
    keys = (_MODEL, *_DATA, _ATTENTION, _LOSS, _OFF, _REENTRANT, *_LORA)
    found, unknown = read_keys(keys, file)
    yield from (*reads, *found)
    yield from (*problems, *unknown)
    yield from arguments.read_sharding(file, files)
    yield from arguments.read_precision(file)
    if file.get("pure_bf16") is True:
        yield read_at(file, LOAD_DTYPE, "bfloat16", "pure_bf16")
    if file.get("upcast_layernorm") is True:
        yield read_at(file, "norm_dtype", "fp32", "upcast_layernorm")
    yield from _read_method(file)
    if file.get("lora_target") is not None:
        yield read_at(file, "lora_targets", _targets(file.get("lora_target")), "lora_target")


def _read_method(file: ConfigFile) -> Iterator[Read | Finding]:
    """Yield the method; LoRA over 4-bit weights is QLoRA."""
    kind, bits = file.get("finetuning_type"), file.get("quantization_bit")
    if kind not in (None, "lora", "full"):
        yield not_understood(file, "finetuning_type", kind)
    elif bits not in (None, 4):
        yield not_understood(file, "quantization_bit", bits)
    elif bits == 4 and kind != "full":
        yield read_at(file, "method", Method.QLORA.value, "quantization_bit")
    elif kind is not None:
        yield read_at(file, "method", kind, "finetuning_type")


def _targets(value: object) -> str:
    names = targets_from(value).replace(" ", "")
    return ALL_LINEAR if names == _ALL else names


def _read_switch(files: Sequence[ConfigFile]) -> Iterator[Read]:
    for file in files:
        if str(file.get("env", _OPTIM_TORCH)).lower() in ("0", "false", "n"):
            yield read_at(file, "expandable_segments", False, "env", _OPTIM_TORCH)


_UNCAST = (Numerics.FP32, Numerics.BF16)
# Adapters' base has the dtype of the checkpoint, whatever autocast runs in.
_ADAPTER_NUMERICS = (Numerics.BF16, Numerics.BF16_AUTOCAST)

FORMAT = TrainerFormat(
    trainer="llamafactory",
    needs=(
        Needs(package="llamafactory", releases=">=0.9.5"),
        DEEPSPEED,
        *QUANTISED,
        LIGER,
        FLASH,
    ),
    decides=DECIDED.difference(WITHOUT_OWN_DTYPES, {"expandable_segments"}) | {"loss"},
    ways=(
        Way(methods=FULL, shardings=ZERO, numerics=MASTER),
        Way(methods=FULL, shardings=FSDP, numerics=(*MASTER, *_UNCAST), alone=False),
        Way(methods=FULL, shardings=DDP, numerics=(*_UNCAST, *AUTOCAST)),
        Way(methods=ADAPTERS, shardings=DDP, numerics=_ADAPTER_NUMERICS),
        Way(methods=ADAPTERS, shardings=FSDP, numerics=_ADAPTER_NUMERICS, alone=False),
        Way(methods=ADAPTERS[:1], shardings=ZERO, numerics=MASTER),
    ),
    values={
        **ARGUMENT_VALUES,
        "loss": LOSSES,
    },
    refusals=REFUSALS,
    marks=frozenset({"finetuning_type", "cutoff_len", "llamafactory-cli"}),
    trains_causal_only=True,
    write=write,
    read=read,
)
