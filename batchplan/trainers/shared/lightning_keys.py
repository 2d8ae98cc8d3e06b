"""Lightning's words beside ours, and how a config or a script is read back.

Source: lightning ``pytorch/trainer/trainer.py, Trainer``; ``pytorch/strategies/*.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.spec import Checkpointing, Offload, Sharding
from batchplan.trainers.format import ADAPTERS, FSDP, ZERO
from batchplan.trainers.keymap import Key, not_understood, read_at
from batchplan.trainers.keymap import read as read_keys
from batchplan.trainers.reading import Read, Reading
from batchplan.trainers.shared import loop
from batchplan.trainers.shared.combine import CAST, reading
from batchplan.trainers.shared.deepspeed_json import STAGE, is_deepspeed, read_deepspeed
from batchplan.trainers.shared.launch import read_launch
from batchplan.trainers.shared.model_kwargs import LOAD_DTYPE, read_model

STRATEGY = {
    Sharding.FSDP_FULL: "FULL_SHARD",
    Sharding.FSDP_GRAD_OP: "SHARD_GRAD_OP",
    Sharding.FSDP_HYBRID: "HYBRID_SHARD",
}
"""Lightning's words for what FSDP shards."""
_PRECISIONS = {
    **{f"bf16{end}": ("bf16", end) for end in ("-mixed", "-true")},
    **{f"16{end}": ("fp16", end) for end in ("-mixed", "-true")},
    "bf16": ("bf16", "-mixed"),
    "16": ("fp16", "-mixed"),
    "32": (None, "-true"),
    "32-true": (None, "-true"),
}
"""Words of ``Trainer(precision=...)``: the 16-bit dtype, and how it is used."""
_BATCHES = tuple(
    (section, *inner, "batch_size")
    for section in ("data", "model")
    for inner in (("init_args",), ())
)
"""Where a DataModule or the model is given its batch, by the name that Lightning's own finder of
batch sizes changes (``pytorch/tuner/tuning.py, scale_batch_size``)."""
POLICY = "activation_checkpointing_policy"
"""Argument of ``FSDPStrategy`` with the layers that are checkpointed."""
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}

_PRECISION = "precision"
"""Read, but no option of ours: Lightning's word."""
_STEPS = Key(
    key="accumulate_grad_batches",
    option="accum_steps",
    why="x {micro_batch} x {num_ranks} devices = {global_batch:,} sequences a step",
)
TRAINER = (
    Key(key="devices", option="ranks_per_node", why="on every node"),
    Key(key="num_nodes", option="num_nodes"),
    _STEPS,
    Key(key="max_steps", option="max_steps"),
    Key(key="max_epochs", option="epochs"),
)


def read(files: Sequence[ConfigFile]) -> Reading:
    """Return what the files of one run say."""
    found: list[Read | Finding] = []
    for file in files:
        if file.format not in (Format.YAML, Format.PYTHON):
            continue
        calls = loop.by_call(file)
        reads, unknown = loop.read_loop(calls)
        found += [*_batch(file), *reads, *unknown]
        for name in ("trainer", "Trainer"):
            if calls.under(name).entries:
                found += _read_trainer(calls.under(name), calls, files)
    loaded, unknown = read_model(files)
    reads = [*(one for one in found if isinstance(one, Read)), *loaded]
    problems = [one for one in found if isinstance(one, Finding)]
    reads = [*_as_cast(reads), *read_launch(files)]
    return reading("lightning", reads, [*problems, *unknown])


def _read_trainer(
    trainer: ConfigFile, calls: ConfigFile, files: Sequence[ConfigFile]
) -> Iterator[Read | Finding]:
    reads, problems = read_keys(TRAINER[1:], trainer)
    yield from reads
    yield from problems
    yield from _devices(trainer)
    precision = trainer.get("precision")
    if precision is not None:
        if str(precision) in _PRECISIONS:
            yield read_at(trainer, _PRECISION, str(precision), "precision")
        else:
            yield not_understood(trainer, "precision", precision)
    yield from _read_strategy(trainer, calls, files)


def _batch(file: ConfigFile) -> Iterator[Read]:
    for path in _BATCHES:
        if type(file.get(*path)) is int:
            yield read_at(file, "micro_batch", file.get(*path), *path)
            return


def _devices(trainer: ConfigFile) -> Iterator[Read]:
    """Yield the devices of all nodes; ``auto`` and -1 are as many as there are."""
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes", default=1)
    if isinstance(devices, list | tuple):
        devices = len(devices)
    elif isinstance(devices, str) and "," in devices:
        devices = len([device for device in devices.split(",") if device.strip()])
    elif isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if type(devices) is int and devices > 0 and type(nodes) is int:
        yield read_at(trainer, "num_ranks", devices * nodes, "devices")


_WORDS = {
    "auto": (Sharding.DDP, Offload.NONE),
    "ddp": (Sharding.DDP, Offload.NONE),
    "fsdp": (Sharding.FSDP_FULL, Offload.NONE),
    "fsdp_cpu_offload": (Sharding.FSDP_FULL, Offload.PARAMS),
    "deepspeed": (Sharding.ZERO2, Offload.NONE),
    "deepspeed_stage_1": (Sharding.ZERO1, Offload.NONE),
    "deepspeed_stage_1_offload": (Sharding.ZERO1, Offload.OPTIMIZER),
    "deepspeed_stage_2": (Sharding.ZERO2, Offload.NONE),
    "deepspeed_stage_2_offload": (Sharding.ZERO2, Offload.OPTIMIZER),
    "deepspeed_stage_3": (Sharding.ZERO3, Offload.NONE),
    "deepspeed_stage_3_offload": (Sharding.ZERO3, Offload.PARAMS),
}
"""Source: ``register_strategies`` of each strategy."""


def _read_strategy(
    trainer: ConfigFile, calls: ConfigFile, files: Sequence[ConfigFile]
) -> Iterator[Read | Finding]:
    """Yield what a strategy says, as a word, as a class with arguments, or as a call."""
    word = trainer.get("strategy")
    named = trainer.get("strategy", "class_path", default=word)
    kind = str(named).rpartition(".")[2]
    if kind in _CLASSES:
        yield from _CLASSES[kind](trainer.under("strategy", "init_args"), files)
    elif isinstance(named, str):
        known = _WORDS.get("ddp" if kind.startswith("ddp") else kind)
        if known is None:
            yield not_understood(trainer, "strategy", named)
            return
        yield read_at(trainer, "sharding", known[0].value, "strategy")
        yield read_at(trainer, "offload", known[1].value, "strategy")
    else:
        for call in _CLASSES.keys() & calls.data.keys():
            yield from _CLASSES[call](calls.under(call), files)


def _read_fsdp(arguments: ConfigFile, _files: Sequence[ConfigFile]) -> Iterator[Read]:
    strategy = str(arguments.get("sharding_strategy", default="FULL_SHARD")).upper()
    shardings = {word: sharding for sharding, word in STRATEGY.items()} | {"NO_SHARD": Sharding.DDP}
    sharding = shardings.get(strategy, Sharding.FSDP_FULL)
    yield read_at(arguments, "sharding", sharding.value, "sharding_strategy")
    if arguments.get("cpu_offload") is True:
        yield read_at(arguments, "offload", Offload.PARAMS.value, "cpu_offload")
    for key in (POLICY, "activation_checkpointing"):
        if key in arguments and arguments.entries[key,].value is not None:
            yield read_at(arguments, "checkpointing", Checkpointing.FULL.value, key)


def _read_deepspeed(arguments: ConfigFile, files: Sequence[ConfigFile]) -> Iterator[Read]:
    config = arguments.get("config")
    if isinstance(config, str):
        for file in files:
            if PurePath(file.name).name == PurePath(config).name and is_deepspeed(file):
                yield from read_deepspeed(file)
        return
    if isinstance(config, dict):
        yield from read_deepspeed(arguments.under("config"))
        return
    stage = arguments.get("stage", default=2)
    if type(stage) is int and stage in _STAGES:
        yield read_at(arguments, "sharding", _STAGES[stage], "stage")
    for key, offload in _OFFLOADS.items():
        if arguments.get(key) is True:
            yield read_at(arguments, "offload", offload.value, key)


def _read_ddp(arguments: ConfigFile, _files: Sequence[ConfigFile]) -> Iterator[Read]:
    yield read_at(arguments, "sharding", Sharding.DDP.value, "gradient_as_bucket_view")
    if arguments.get("gradient_as_bucket_view") is True:
        yield read_at(arguments, "bucket_view", True, "gradient_as_bucket_view")


_CLASSES = {
    "FSDPStrategy": _read_fsdp,
    "DeepSpeedStrategy": _read_deepspeed,
    "DDPStrategy": _read_ddp,
}
_STAGES = {stage: sharding.value for sharding, stage in STAGE.items()}
_OFFLOADS = {"offload_optimizer": Offload.OPTIMIZER, "offload_parameters": Offload.PARAMS}
"""The later counts: whoever offloads weights offloads the optimizer too."""


def _as_cast(reads: Sequence[Read]) -> list[Read]:
    """Return reads with Lightning's precision as the dtype to load in and that of autocast.

    ``-true`` casts the whole module. ``-mixed`` is autocast; FSDP gathers 16-bit copies of shards
    that stay as they were loaded (``plugins/precision/fsdp.py``), and DeepSpeed's own 16-bit
    training takes its place (``strategies/deepspeed.py, _format_precision_config``).
    """
    last = {read.option: read for read in reads}
    others = [read for read in reads if read.option != _PRECISION]
    says = last.get(_PRECISION)
    if says is None:
        return others
    half, use = _PRECISIONS[str(says.value)]
    values = {option: read.value for option, read in last.items()}
    sharding, load = values.get("sharding"), values.get(LOAD_DTYPE)
    if half is None:
        found = {LOAD_DTYPE: "float32"} if sharding in FSDP else {}
    elif use == "-mixed":
        keeps_shards = sharding in FSDP and load != "float32"
        found = {} if keeps_shards else {CAST: half}
    elif sharding in ZERO:
        found = {CAST: half}
    else:
        found = {LOAD_DTYPE: _DTYPES[half]}
        if values.get("method") in ADAPTERS:
            found["adapter_dtype"] = half
    return [*others, *(replace(says, option=name, value=value) for name, value in found.items())]
