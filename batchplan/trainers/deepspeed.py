"""DeepSpeed's own engine: its JSON, and what a loop of the user's own must do beside it.

Keys: deepspeed ``runtime/config.py``, ``runtime/zero/config.py``; optimizers ``runtime/engine.py,
_configure_basic_optimizer``. Nothing here is ``"auto"``: the engine takes numbers only.

Stage 0 is not written: the engine then copies gradients into buffers of its own size on every
device, even one alone (``buffered_allreduce_fallback``), which no sharding of ours stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.spec import Optimizer, OptimizerImpl, Recipe
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import (
    ADAPTERS,
    COMMON,
    FULL,
    MASTER,
    ZERO,
    Refusal,
    TrainerFormat,
    Way,
)
from batchplan.trainers.keymap import Key, not_understood, read_at
from batchplan.trainers.keymap import read as read_keys
from batchplan.trainers.reading import Read, Reading
from batchplan.trainers.releases import Needs
from batchplan.trainers.shared import loop
from batchplan.trainers.shared.combine import reading
from batchplan.trainers.shared.deepspeed_json import (
    TRIPLE,
    is_deepspeed,
    offloads,
    read_deepspeed,
    to_json,
    zero_optimization,
)
from batchplan.trainers.shared.launch import HEAD, PORT, RANK, launch_file, read_launch
from batchplan.trainers.shared.model_kwargs import model_file, read_model
from batchplan.trainers.shared.needs import FLASH, LIGER, LOADS_BY_DTYPE, PEFT
from batchplan.trainers.shared.optimizer_classes import read_optimizer
from batchplan.trainers.shared.precision import WITHOUT_OWN_DTYPES, autocast
from batchplan.trainers.shared.summary import header, start
from batchplan.trainers.shared.ways import (
    CHECKPOINTINGS,
    DEEPSPEED_REFUSALS,
    LOSSES,
    OFFLOAD_REFUSALS,
)
from batchplan.trainers.shared.yaml_text import Setting

_CLIPPED_AT = 1.0
_HOSTFILE = "${HOSTFILE:?file with a line 'host slots=devices' for each node}"
_ADAMW: dict[OptimizerImpl, dict[str, bool]] = {
    OptimizerImpl.FUSED: {},
    OptimizerImpl.FOREACH: {"torch_adam": True, "foreach": True},
    OptimizerImpl.FOR_LOOP: {"torch_adam": True, "foreach": False},
}
"""Fused is DeepSpeed's own; the others are torch's AdamW (``get_optimizer_configuration``)."""
_TYPES: dict[Optimizer, tuple[str, dict[str, float]]] = {
    Optimizer.ADAMW: ("AdamW", {}),
    Optimizer.SGD: ("SGD", {}),
    Optimizer.SGD_MOMENTUM: ("SGD", {"momentum": 0.9}),
    Optimizer.LION: ("Lion", {}),
}
"""Names in ``optimizer.type`` and arguments; SGD is torch's, Lion is DeepSpeed's fused one."""
_UNTESTED = (Optimizer.SGD, Optimizer.SGD_MOMENTUM)
"""Not in ``ZERO_SUPPORTED_OPTIMIZERS`` (``runtime/zero/utils.py``)."""

_SCHEDULER = (
    Key(key="scheduler.params.warmup_num_steps", option="warmup_steps", is_written=False),
    Key(
        key="scheduler.type",
        option="schedule",
        aliases={
            "WarmupCosineLR": "cosine",
            "WarmupDecayLR": "linear",
            "WarmupLR": "constant_with_warmup",
        },
        is_written=False,
    ),
)
_INITIALISED_WITH = ("config", "config_params")
_OTHER_STATES = (
    "bf16.bf16_master_weights_and_grads",
    "bf16.bf16_optimizer_states",
    "fp16.fp16_master_weights_and_grads",
    "torch_autocast.enabled",
    "zero_optimization.zero_quantized_weights",
    "zero_optimization.zero_quantized_gradients",
)
"""Switches that change what is kept, in ways that memory is not known for."""


def write(job: Job) -> tuple[EmittedFile, ...]:
    """Return the JSON of a plan, the files beside it, and how to start it."""
    name = f"{job.stem}.json"
    main = EmittedFile(name=name, text=to_json(_config(job)))
    beside = loop.loop_file(job, _header(job, name), _usage(job), _loop_settings(job))
    command = f"deepspeed {_devices(job)} train.py --deepspeed_config {name}"
    return main, beside, model_file(job), launch_file(job, command)


def _config(job: Job) -> dict[str, Any]:
    recipe, options = job.plan.recipe, job.options()
    config: dict[str, Any] = {key: options[option] for key, option in TRIPLE}
    config["gradient_clipping"] = _CLIPPED_AT
    config[str(autocast(recipe))] = {"enabled": True}
    config["optimizer"] = _optimizer(recipe, options)
    if recipe.optimizer in _UNTESTED:
        config["zero_allow_untested_optimizer"] = True
    config["dataloader_drop_last"] = True
    config["zero_optimization"] = zero_optimization(recipe)
    return config


def _optimizer(recipe: Recipe, options: dict[str, Any]) -> dict[str, Any]:
    """Return the block of that name; offloaded AdamW runs on the host however it is written."""
    kind, arguments = _TYPES[recipe.optimizer]
    params: dict[str, Any] = {"lr": options["learning_rate"], **arguments}
    if "beta2" in options:
        params["betas"] = [0.9, options["beta2"]]
    if recipe.optimizer is Optimizer.ADAMW and not offloads(recipe):
        params |= _ADAMW[recipe.optimizer_impl]
    return {"type": kind, "params": params}


def _devices(job: Job) -> str:
    """Return the launcher's flags; without ssh every node keeps its own environment."""
    batch, nodes = job.plan.batch, job.plan.num_nodes
    words = [f"--num_gpus={batch.num_ranks // nodes}"]
    if nodes > 1:
        words = [
            f'--hostfile="{_HOSTFILE}"',
            f'--no_ssh --node_rank="{RANK}"',
            f'--master_addr="{HEAD}" --master_port={PORT}',
            f"--num_nodes={nodes}",
            *words,
        ]
    return " ".join(words)


def _header(job: Job, name: str) -> Iterator[str]:
    yield from header(
        job,
        FORMAT,
        ("Data", f"{job.plan.batch.seq_len} tokens a sequence"),
        ("Engine", f"{name}, learning rate by the {job.options()['rule']} rule"),
        ("Script", f"train.py calls what this file and {job.stem}.model.yaml say"),
        start(job),
    )
    yield ""


def _usage(job: Job) -> Iterator[str]:
    yield 'tokens = tokenizer(texts, **loop["tokenizer"])'
    yield from loop.usage_of_model(job)
    yield "args has --local_rank and deepspeed.add_config_arguments"
    yield "engine, _, loader, _ = deepspeed.initialize(args, model, training_data=data,"
    yield "    model_parameters=[p for p in model.parameters() if p.requires_grad],"
    yield "    lr_scheduler=lambda optimizer:"
    yield f"        {loop.usage_of_scheduler(job)})"
    yield "Each batch: engine.backward(engine(**batch).loss), engine.step()"


def _loop_settings(job: Job) -> Iterator[Setting]:
    yield from loop.length(job)
    yield from loop.model(job)


def read(files: Sequence[ConfigFile]) -> Reading:
    """Return what the files of one run say."""
    found: list[Read | Finding] = []
    for file in files:
        if is_deepspeed(file):
            found += _read_config(file)
        elif file.format in (Format.YAML, Format.PYTHON):
            calls = loop.by_call(file)
            reads, unknown = loop.read_loop(calls)
            found += [*reads, *unknown]
            for name in _INITIALISED_WITH:
                found += _read_config(calls.under("initialize", name))
    loaded, unknown = read_model(files)
    reads = [one for one in found if isinstance(one, Read)]
    problems = [one for one in found if isinstance(one, Finding)]
    return reading("deepspeed", [*reads, *loaded, *read_launch(files)], [*problems, *unknown])


def _read_config(file: ConfigFile) -> Iterator[Read | Finding]:
    if not file.entries:
        return
    yield from read_deepspeed(file)
    kind, params = file.get("optimizer", "type"), file.under("optimizer", "params")
    if kind is not None:
        yield from read_optimizer(params, _spelt(kind))
        if params.get("torch_adam") is True and "foreach" not in params:
            yield read_at(params, "optimizer_impl", OptimizerImpl.FOREACH.value, "torch_adam")
    reads, problems = read_keys(_SCHEDULER, file)
    yield from reads
    yield from problems
    for key in _OTHER_STATES:
        if file.get(*key.split(".")) is True:
            yield not_understood(file, key, True)


def _spelt(kind: object) -> str:
    """Return a type as its class is spelt; DeepSpeed does not mind the case of its own."""
    known = {name.lower(): name for name, _ in _TYPES.values()} | {"adam": "Adam", "muon": "Muon"}
    return known.get(str(kind).lower(), str(kind))


FORMAT = TrainerFormat(
    trainer="deepspeed",
    needs=(
        Needs(package="deepspeed", releases=">=0.14.5"),
        LOADS_BY_DTYPE,
        PEFT,
        LIGER,
        FLASH,
    ),
    decides=COMMON.union(
        WITHOUT_OWN_DTYPES,
        {"checkpointing", "reentrant", "attention", "loss", "expandable_segments"},
    ),
    ways=(Way(methods=(*FULL, ADAPTERS[0]), shardings=ZERO, numerics=MASTER),),
    values={
        **WITHOUT_OWN_DTYPES,
        "optimizer": tuple(_TYPES),
        "optimizer_impl": tuple(_ADAMW),
        "checkpointing": CHECKPOINTINGS,
        "loss": LOSSES,
    },
    refusals=(
        *DEEPSPEED_REFUSALS,
        Refusal(
            when={"sharding": ("ddp",)},
            text="without ZeRO its engine reduces gradients through buffers of its own, which "
            "memory is not known for (--sharding zero1)",
        ),
        *OFFLOAD_REFUSALS[1:],
    ),
    marks=frozenset(
        {
            *("zero_optimization", "train_micro_batch_size_per_gpu", "train_batch_size"),
            *("deepspeed.initialize", "deepspeed"),
        }
    ),
    suffix=".json",
    write=write,
    read=read,
)
