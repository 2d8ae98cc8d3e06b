"""Lightning: a ``LightningCLI`` config of the Trainer and the optimizer, and the rest of a loop.

Keys: lightning ``pytorch/trainer/trainer.py, Trainer``; ``pytorch/strategies/*.py``. The batch
size is a DataLoader's, which is the user's own; so it stands with the other arguments of the loop.
FSDP here is torch's first version (``pytorch/strategies/fsdp.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from batchplan.spec import Checkpointing, Method, Offload, Optimizer, OptimizerImpl, Recipe
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import (
    ADAPTERS,
    AUTOCAST,
    DDP,
    FSDP,
    FULL,
    MASTER,
    PURE,
    ZERO,
    Refusal,
    TrainerFormat,
    Way,
)
from batchplan.trainers.keymap import written
from batchplan.trainers.releases import Needs
from batchplan.trainers.shared import loop
from batchplan.trainers.shared.deepspeed_json import offloads, to_json, zero_optimization
from batchplan.trainers.shared.launch import HEAD, PORT, RANK, launch_file
from batchplan.trainers.shared.layers import layer_classes
from batchplan.trainers.shared.lightning_keys import POLICY, STRATEGY, TRAINER, read
from batchplan.trainers.shared.model_kwargs import model_file
from batchplan.trainers.shared.needs import BESIDE_TRANSFORMERS, LOADS_BY_DTYPE
from batchplan.trainers.shared.optimizer_classes import CLASSES, CPU_ADAMW, class_settings
from batchplan.trainers.shared.precision import WITHOUT_OWN_DTYPES, autocast
from batchplan.trainers.shared.summary import header, start
from batchplan.trainers.shared.ways import (
    CHECKPOINTINGS,
    DECIDED,
    DEEPSPEED_REFUSALS,
    FULL_WAYS,
    LOSSES,
    NO_MASTERS_UNDER_DDP,
    NO_REENTRANT_FSDP,
    OFFLOAD_REFUSALS,
)
from batchplan.trainers.shared.yaml_text import Setting, to_yaml

_CLIPPED_AT = 1.0
_STRATEGIES = "lightning.pytorch.strategies"
_HALVES = {"bf16": "bf16", "fp16": "16"}
"""Our names and Lightning's."""


def write(job: Job) -> tuple[EmittedFile, ...]:
    """Return the LightningCLI config of a plan, the files beside it, and how to start it.

    Raises:
        SpecError: when FSDP must be told which layers to wrap, and they are not known.
    """
    name, deepspeed = f"{job.stem}.yaml", f"{job.stem}.ds.json"
    main = EmittedFile(name=name, text=to_yaml(_header(job), _settings(job, deepspeed)))
    beside: tuple[EmittedFile, ...] = ()
    if job.plan.recipe.sharding in ZERO:
        beside = (EmittedFile(name=deepspeed, text=to_json(_deepspeed(job.plan.recipe))),)
    command = f"python train.py fit --config {name}"
    launch = launch_file(job, command, environment=_environment(job))
    return main, *beside, _loop(job), model_file(job), launch


def _header(job: Job) -> Iterator[str]:
    return header(
        job,
        FORMAT,
        ("Data", f"{job.plan.batch.seq_len} tokens a sequence"),
        ("Script", "train.py is LightningCLI(YourModule, YourDataModule), which do what"),
        ("", f"{job.stem}.loop.yaml and {job.stem}.model.yaml say"),
        start(job),
    )


def _settings(job: Job, deepspeed: str) -> Iterator[Setting]:
    recipe = job.plan.recipe
    for setting in written(TRAINER, _options(job)):
        yield replace(setting, key=f"trainer.{setting.key}")
    yield Setting("trainer.precision", _precision(recipe), f"numerics {recipe.numerics.value}")
    if recipe.sharding not in FSDP and not _unscales_itself(recipe):
        yield Setting("trainer.gradient_clip_val", _CLIPPED_AT)
    for key, value in _strategy(job, deepspeed).items():
        yield Setting(f"trainer.strategy{key}", value, recipe.sharding.value if not key else "")
    path = CPU_ADAMW if recipe.sharding in ZERO and offloads(recipe) else None
    yield from class_settings(job, path=path)


def _options(job: Job) -> dict[str, Any]:
    """Return the options, with steps in place of epochs that are no whole number."""
    options = job.options()
    if isinstance(options.get("epochs"), float) and job.epoch_steps:
        options["max_steps"] = int(job.epoch_steps * options.pop("epochs"))
    return options


def _precision(recipe: Recipe) -> str:
    """Return Lightning's word. ``-true`` casts the whole module, adapters too."""
    cast = autocast(recipe)
    if cast is not None:
        return f"{_HALVES[cast]}-mixed"
    half = recipe.numerics.value
    return (
        f"{_HALVES[half]}-true" if recipe.method is Method.FULL and half in _HALVES else "32-true"
    )


def _unscales_itself(recipe: Recipe) -> bool:
    """Whether Lightning refuses to clip: in mixed precision, bf16 too, what fused AdamW steps on.

    Source: lightning ``pytorch/plugins/precision/amp.py, MixedPrecision.clip_gradients``.
    """
    return (
        recipe.optimizer is Optimizer.ADAMW
        and recipe.optimizer_impl is OptimizerImpl.FUSED
        and recipe.sharding not in ZERO
        and autocast(recipe) is not None
    )


def _strategy(job: Job, deepspeed: str) -> dict[str, Any]:
    """Return what follows ``trainer.strategy`` in the keys, and the values."""
    recipe = job.plan.recipe
    if recipe.sharding in ZERO:
        return _by_class("DeepSpeedStrategy", config=deepspeed)
    if recipe.sharding in FSDP:
        layers = list(layer_classes(job.model.architecture))
        more = {} if recipe.checkpointing is Checkpointing.NONE else {POLICY: layers}
        return _by_class(
            "FSDPStrategy",
            sharding_strategy=STRATEGY[recipe.sharding],
            auto_wrap_policy=layers,
            **more,
            cpu_offload=recipe.offload is Offload.PARAMS,
            state_dict_type="sharded",
        )
    if job.several_devices or recipe.bucket_view:
        return _by_class("DDPStrategy", gradient_as_bucket_view=recipe.bucket_view)
    return {"": "auto"}


def _by_class(name: str, **arguments: Any) -> dict[str, Any]:
    inner = {f".init_args.{key}": value for key, value in arguments.items()}
    return {".class_path": f"{_STRATEGIES}.{name}", **inner}


def _deepspeed(recipe: Recipe) -> dict[str, Any]:
    """Return the JSON, without what Lightning puts in itself: batch, precision and clipping."""
    return {
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero_optimization(recipe),
    }


def _environment(job: Job) -> dict[str, str]:
    """Return how the nodes find each other; Lightning starts a process a device itself.

    Source: lightning ``fabric/plugins/environments/lightning.py``.
    """
    if job.plan.num_nodes == 1:
        return {}
    return {
        "MASTER_ADDR": f'"{HEAD}"',
        "MASTER_PORT": str(PORT),
        "NODE_RANK": f'"{RANK}"',
    }


def _loop(job: Job) -> EmittedFile:
    return loop.loop_file(job, (), _usage(job), [*loop.data(job), *loop.model(job)])


def _usage(job: Job) -> Iterator[str]:
    yield from loop.usage_of_data()
    yield from loop.usage_of_model(job)
    if job.plan.recipe.sharding in FSDP:
        yield "No gradient_clip_val: in configure_gradient_clipping call"
        yield f"    self.trainer.strategy.model.clip_grad_norm_({_CLIPPED_AT})"
    elif _unscales_itself(job.plan.recipe):
        yield "No gradient_clip_val: Lightning refuses it for a fused optimizer under -mixed"
    yield "In a LightningCLI of your own, which hands over the optimizer of the config:"
    yield "def configure_optimizers(module, optimizer, lr_scheduler=None):  # a static method"
    yield f"    rate = {loop.usage_of_scheduler(job)}"
    yield '    stepped = {"scheduler": rate, "interval": "step"}'
    yield '    return {"optimizer": optimizer, "lr_scheduler": stepped}'


FORMAT = TrainerFormat(
    trainer="lightning",
    needs=(
        Needs(package="lightning", releases=">=2.1"),
        Needs(package="jsonargparse[signatures]"),
        LOADS_BY_DTYPE,
        *BESIDE_TRANSFORMERS,
    ),
    decides=DECIDED - {"zero_buckets", "sync_each_batch", "fsdp_version"} | {"loss", "bucket_view"},
    ways=(
        *FULL_WAYS,
        Way(methods=ADAPTERS, shardings=DDP, numerics=(*PURE, *AUTOCAST)),
        Way(methods=ADAPTERS[:1], shardings=ZERO, numerics=MASTER),
    ),
    values={
        **WITHOUT_OWN_DTYPES,
        "optimizer": tuple(CLASSES),
        "optimizer_impl": tuple(OptimizerImpl),
        "checkpointing": CHECKPOINTINGS,
        "loss": LOSSES,
    },
    refusals=(
        *DEEPSPEED_REFUSALS,
        NO_MASTERS_UNDER_DDP,
        Refusal(
            when={"sharding": FSDP, "method": FULL, "numerics": AUTOCAST},
            text="its FSDP gathers 16-bit copies of fp32 shards, which is --numerics bf16-master "
            "or fp16-master, not {numerics}",
        ),
        Refusal(
            when={"sharding": FSDP, "method": ADAPTERS},
            text="its FSDP, torch's first version, joins adapters and base into tensors of one "
            "dtype, all of whose gradients take room",
        ),
        NO_REENTRANT_FSDP,
        *OFFLOAD_REFUSALS,
    ),
    marks=frozenset(
        {
            "trainer",
            "lightning",
            "LightningCLI",
            *(f"{module}.Trainer" for module in ("L", "pl", "lightning", "pytorch_lightning")),
        }
    ),
    write=write,
    read=read,
)
