"""torchtune's recipes: a YAML of components with their arguments, for ``tune run``.

Sources: torchtune ``recipes/full_finetune_distributed.py``, ``full_finetune_single_device.py``,
``lora_finetune_distributed.py``, ``lora_finetune_single_device.py``. A recipe reads most keys
without a default, so that all of them are written. There is no release after 0.6.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil

from batchplan.errors import SpecError
from batchplan.spec import Checkpointing, Method, Numerics, Optimizer, Sharding
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import ADAPTERS, COMMON, DDP, FULL, Refusal, TrainerFormat, Way
from batchplan.trainers.keymap import written
from batchplan.trainers.releases import Needs
from batchplan.trainers.shared.adapters import scale
from batchplan.trainers.shared.launch import launch_file, torchrun_flags
from batchplan.trainers.shared.needs import QUANTISED
from batchplan.trainers.shared.optimizer_classes import (
    CLASSES,
    IMPLEMENTATIONS,
    WITHOUT_TRANSFORMERS,
    arguments_of,
)
from batchplan.trainers.shared.precision import WITHOUT_OWN_DTYPES
from batchplan.trainers.shared.summary import header, start
from batchplan.trainers.shared.torchtune_keys import (
    ALL_LINEAR,
    ATTENTION,
    BATCH,
    CHECKPOINTING,
    DTYPE,
    HEAD,
    LENGTH,
    LORA,
    MLP,
    SCHEDULE,
    SHARDING,
    read,
)
from batchplan.trainers.shared.torchtune_models import Component, component_of
from batchplan.trainers.shared.ways import NOT_ON_DTENSORS, OFFLOAD_REFUSALS
from batchplan.trainers.shared.yaml_text import Setting, to_yaml

_SHARDED = (Sharding.FSDP_FULL, Sharding.FSDP_GRAD_OP)
_DTYPES = (Numerics.FP32, Numerics.BF16)
_EVERY_SECOND = 2
"""``ac_option``: of how many layers one is checkpointed."""


def write(job: Job) -> tuple[EmittedFile, ...]:
    """Return the YAML of a torchtune recipe, and how to start it.

    Raises:
        SpecError: when torchtune does not build the model, or cannot adapt the layers.
    """
    component = component_of(job.model.id)
    if component is None:
        raise SpecError(
            f"torchtune has no component for {job.model.id}: it builds Llama 2 to 3.3, Qwen 2 and "
            "2.5, Mistral 7B v0.1, Gemma 1 and 2, Phi 3 mini and Phi 4."
        )
    name = f"{job.stem}.yaml"
    main = EmittedFile(name=name, text=to_yaml(_header(job), _settings(job, component)))
    flags = torchrun_flags(job) if job.several_devices else ()
    command = " ".join(["tune run", *flags, _recipe_name(job), "--config", name])
    return main, launch_file(job, command)


def _recipe_name(job: Job) -> str:
    what = "full" if job.plan.recipe.method is Method.FULL else "lora"
    return f"{what}_finetune_{'distributed' if job.several_devices else 'single_device'}"


def _folder(job: Job) -> str:
    return job.model.id.rstrip("/").rpartition("/")[2]


def _header(job: Job) -> Iterator[str]:
    return header(
        job,
        FORMAT,
        ("Before", f"tune download {job.model.id} --output-dir {_folder(job)}"),
        ("Data", f"samples of {job.plan.batch.seq_len} tokens; name yours below"),
        start(job),
    )


def _settings(job: Job, component: Component) -> Iterator[Setting]:
    recipe, options = job.plan.recipe, job.options()
    yield Setting("output_dir", "out")
    yield from _model(job, component)
    yield from _files(job, component)
    yield Setting("resume_from_checkpoint", False)
    yield Setting(
        "dataset._component_",
        "torchtune.datasets.alpaca_cleaned_dataset",
        "stands for yours; longer samples are cut",
    )
    yield Setting("dataset.packed", False)
    yield Setting("seed", None)
    yield Setting("shuffle", True)
    yield from written(BATCH, options)
    yield from _run_length(job)
    yield from _optimizer(job)
    yield Setting("loss._component_", "torchtune.modules.loss.CEWithChunkedOutputLoss")
    yield Setting("device", "cuda")
    yield from written((DTYPE, *CHECKPOINTING), options)
    if recipe.checkpointing is Checkpointing.SELECTIVE:
        yield Setting("ac_option", _EVERY_SECOND, "every second layer")
    if job.several_devices:
        yield from written(SHARDING, options)
    yield Setting("compile", False)
    if recipe.method is Method.FULL:
        yield Setting("optimizer_in_bwd", False)
    yield Setting("metric_logger._component_", "torchtune.training.metric_logging.DiskLogger")
    yield Setting("metric_logger.log_dir", "out/logs")
    yield Setting("log_peak_memory_stats", True, "to compare with the peak above")


def _model(job: Job, component: Component) -> Iterator[Setting]:
    recipe = job.plan.recipe
    adapts = recipe.method is not Method.FULL
    yield Setting("model._component_", component.path(adapts=adapts))
    if not adapts:
        return
    names = _adapted(recipe.lora_targets)
    _check_targets(job, component, names)
    attention = [ATTENTION[name] for name in names if name in ATTENTION]
    yield Setting("model.lora_attn_modules", attention)
    yield Setting("model.apply_lora_to_mlp", set(MLP) <= set(names))
    if HEAD in names:
        yield Setting("model.apply_lora_to_output", True)
    yield from written(LORA, job.options())
    yield scale(recipe, "model.lora_alpha")
    if recipe.method is Method.QLORA:
        yield Setting("model.quantize_base", True, "NF4")


def _adapted(lora_targets: str) -> list[str]:
    if lora_targets == ALL_LINEAR:
        return [*ATTENTION, *MLP]
    return lora_targets.split(",")


def _check_targets(job: Job, component: Component, names: Sequence[str]) -> None:
    """Refuse layers that torchtune cannot adapt, and what it then would not quantise."""
    asked, mlp = set(names), set(MLP)
    unknown = asked - {*ATTENTION, *mlp, HEAD}
    what = f"torchtune cannot put adapters on {','.join(names)} of {job.model.id}"
    if unknown:
        raise SpecError(f"{what}: it knows no {', '.join(sorted(unknown))}.")
    if asked & mlp not in (set(), mlp):
        raise SpecError(f"{what}: it adapts {', '.join(MLP)} together or not at all.")
    if not asked & set(ATTENTION):
        raise SpecError(f"{what}: it needs one of {', '.join(ATTENTION)} among them.")
    if HEAD in asked and component.is_tied:
        raise SpecError(f"{what}: its head is the embedding.")
    is_partial = not asked >= {*ATTENTION, *mlp}
    if job.plan.recipe.method is Method.QLORA and is_partial and not component.family.quantizes_all:
        raise SpecError(
            f"{what} alone: of this family it quantises only layers with adapters "
            "(--lora-targets all-linear)."
        )


def _files(job: Job, component: Component) -> Iterator[Setting]:
    """Yield where tokenizer and weights are read from: the folder of ``tune download``."""
    folder, family = _folder(job), component.family
    yield Setting("tokenizer._component_", f"torchtune.models.{family.tokenizer}")
    for argument, file in family.tokenizer_files.items():
        yield Setting(f"tokenizer.{argument}", f"{folder}/{file}")
    yield from written((LENGTH,), job.options())
    yield Setting("checkpointer._component_", "torchtune.training.FullModelHFCheckpointer")
    yield Setting("checkpointer.checkpoint_dir", folder)
    yield Setting("checkpointer.checkpoint_files", component.files)
    yield Setting("checkpointer.model_type", family.model_type)
    yield Setting("checkpointer.output_dir", "out")


def _run_length(job: Job) -> Iterator[Setting]:
    """Yield epochs and, where a part of one is wanted, the steps of each."""
    whole = ceil(job.epochs)
    if job.epoch_steps is None:
        yield Setting("epochs", whole)
        yield Setting("max_steps_per_epoch", None)
        return
    yield Setting("epochs", whole, f"{job.epoch_steps:,} optimizer steps each")
    is_part = job.epochs != whole
    steps = ceil(job.epochs * job.epoch_steps / whole) if is_part else None
    yield Setting("max_steps_per_epoch", steps, f"{job.epochs:g} epochs" if is_part else "")


def _optimizer(job: Job) -> Iterator[Setting]:
    recipe, options = job.plan.recipe, job.options()
    arguments = arguments_of(recipe, options)
    if recipe.optimizer is Optimizer.ADAMW:
        arguments |= IMPLEMENTATIONS[recipe.optimizer_impl]
    yield Setting("optimizer._component_", CLASSES[recipe.optimizer].path)
    whys = {"lr": f"{options['rule']} rule", "betas": "half-life in tokens kept"}
    for name, value in arguments.items():
        yield Setting(f"optimizer.{name}", value, whys.get(name, ""))
    yield Setting("lr_scheduler._component_", SCHEDULE)
    warmup = options.get("warmup_steps", 0)
    yield Setting("lr_scheduler.num_warmup_steps", warmup, "optimizer steps")


_SELECTIVE: Mapping[str, tuple[str, ...]] = {"checkpointing": ("selective",)}

FORMAT = TrainerFormat(
    trainer="torchtune",
    needs=(
        Needs(package="torchtune", releases="==0.6.1"),
        Needs(package="torchao", releases="==0.10.0"),
        QUANTISED[1],
    ),
    decides=COMMON.union(WITHOUT_OWN_DTYPES, {"checkpointing", "expandable_segments"}),
    ways=(
        Way(methods=(*FULL, *ADAPTERS[:1]), shardings=DDP, numerics=_DTYPES, alone=True),
        Way(methods=(*FULL, *ADAPTERS[:1]), shardings=_SHARDED, numerics=_DTYPES, alone=False),
        Way(methods=ADAPTERS[1:], shardings=DDP, numerics=_DTYPES[1:], alone=True),
        Way(methods=ADAPTERS[1:], shardings=_SHARDED, numerics=_DTYPES[1:], alone=False),
    ),
    values={
        **WITHOUT_OWN_DTYPES,
        "optimizer": WITHOUT_TRANSFORMERS,
        "optimizer_impl": tuple(IMPLEMENTATIONS),
    },
    refusals=(
        Refusal(
            when={**_SELECTIVE, "method": ADAPTERS},
            text="its recipes for adapters have no selective checkpointing",
        ),
        Refusal(
            when={**_SELECTIVE, "sharding": DDP},
            text="its recipes for one device have no selective checkpointing",
        ),
        NOT_ON_DTENSORS,
        *OFFLOAD_REFUSALS,
    ),
    marks=frozenset(
        {"checkpointer._component_", "model._component_", "tokenizer._component_", "tune"}
    ),
    write=write,
    read=read,
)
