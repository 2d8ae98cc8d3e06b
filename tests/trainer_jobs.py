"""Plans to write configs for, the recipes each trainer can run, and reading files back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from planning import bill

from batchplan.configfile import ConfigFile, parse
from batchplan.learning import advise
from batchplan.planner.plan import Plan
from batchplan.spec import (
    Attention,
    Batch,
    Checkpointing,
    Gpu,
    Loss,
    ModelInfo,
    Offload,
    Optimizer,
    OptimizerImpl,
    Recipe,
)
from batchplan.trainers import EmittedFile, Job, Reading, format_of, obstacles, realised
from batchplan.trainers.realise import as_configured, matters

GPU = Gpu(name="A100 SXM 80GB", usable_bytes=85_000_000_000)
MODEL = ModelInfo(id="Qwen/Qwen2.5-7B", architecture="Qwen2ForCausalLM", source="catalog")


def job(
    recipe: Recipe,
    *,
    micro_batch: int = 3,
    accum_steps: int = 4,
    num_ranks: int = 16,
    nodes: int = 2,
    seq_len: int = 2048,
    lr: float = 2e-5,
    model: ModelInfo = MODEL,
    stem: str = "plan",
) -> Job:
    """A job of 3 × 4 × 16 sequences of 2,048 tokens, unless said otherwise."""
    batch = Batch(
        micro_batch=micro_batch, accum_steps=accum_steps, num_ranks=num_ranks, seq_len=seq_len
    )
    rate = advise(
        method=recipe.method,
        optimizer=recipe.optimizer,
        num_params=7_000_000_000,
        hidden_size=None,
        global_batch_size=batch.global_batch_size,
        seq_len=seq_len,
        base_lr=lr,
        base_batch=batch.global_batch_size,
    )
    plan = Plan(
        recipe=recipe,
        batch=batch,
        num_nodes=nodes,
        memory=bill(60_000_000_000),
        usable_bytes=GPU.usable_bytes,
        step_time=None,
        target_deviation=0.01,
        learning_rate=rate,
    )
    return Job(plan=plan, model=model, gpu=GPU, stem=stem)


def recipes(trainer: str, *, several_devices: bool = True) -> Iterator[Recipe]:
    """Yield every mix of what the trainer's table says it can run, without what it refuses."""
    seen = set()
    for way in format_of(trainer).ways:
        if way.alone not in (None, not several_devices):
            continue
        for method, sharding, numerics in itertools.product(
            way.methods, way.shardings, way.numerics
        ):
            base = Recipe(method=method, sharding=sharding, numerics=numerics)
            for change in _changes():
                recipe = realised(
                    trainer, base.model_copy(update=change), several_devices=several_devices
                )
                if recipe not in seen and not obstacles(trainer, recipe):
                    seen.add(recipe)
                    yield recipe


def mixes(trainer: str) -> Iterator[Recipe]:
    """Yield what a trainer makes of every method, sharding and numerics on several devices, each
    with and without checkpointing."""
    for way in format_of(trainer).ways:
        if way.alone is not True:
            for method, sharding, numerics, checkpointing in itertools.product(
                way.methods, way.shardings, way.numerics, ("none", "full")
            ):
                given = {"method": method, "sharding": sharding, "numerics": numerics}
                wanted = Recipe.model_validate(given | {"checkpointing": checkpointing})
                yield realised(trainer, wanted, several_devices=True)


def _changes() -> Iterator[dict[str, object]]:
    yield {}
    for checkpointing, attention in itertools.product(Checkpointing, Attention):
        yield {"checkpointing": checkpointing, "attention": attention}
    yield from ({"loss": loss} for loss in Loss)
    yield from ({"offload": offload} for offload in Offload)
    yield from ({"optimizer": optimizer} for optimizer in Optimizer)
    yield from ({"optimizer_impl": impl} for impl in OptimizerImpl)
    yield {"lora_rank": 64, "lora_targets": "q_proj,v_proj", "lora_dropout": 0.1}
    yield {"double_quant": False, "sync_each_batch": False, "expandable_segments": True}
    yield {"checkpointing": Checkpointing.FULL, "reentrant": True}


def name(recipe: Recipe) -> str:
    """Name a recipe by what differs from the default."""
    default = Recipe().model_dump(mode="json")
    own = {k: v for k, v in recipe.model_dump(mode="json").items() if v != default[k]}
    shown = [recipe.method, recipe.numerics, recipe.sharding]
    more = [f"{k}={v}" for k, v in own.items() if k not in ("method", "numerics", "sharding")]
    return "-".join([*shown, *more])


def parsed(files: tuple[EmittedFile, ...]) -> tuple[ConfigFile, ...]:
    """Read emitted files as ``batchplan check`` does."""
    return tuple(parse(file.name, file.text.encode()) for file in files)


def written(files: tuple[EmittedFile, ...], folder: Path) -> Path:
    """Write emitted files to a folder and return the main one's path."""
    for file in files:
        (folder / file.name).write_text(file.text, encoding="utf-8")
    return folder / files[0].name


def read_back(trainer: str, files: tuple[EmittedFile, ...]) -> Reading:
    """Return what the trainer's reader makes of emitted files."""
    return format_of(trainer).read(parsed(files))


def recipe_of(trainer: str, reading: Reading, *, several_devices: bool = True) -> Recipe:
    """Return the recipe that a reading means, the trainer's own choices included."""
    values, _ = as_configured(trainer, reading.values, several_devices=several_devices)
    known = {k: v for k, v in values.items() if k in Recipe.model_fields}
    return Recipe.model_validate(known)


def differences(trainer: str, before: Recipe, after: Recipe) -> dict[str, tuple[object, object]]:
    """Return the fields that matter and that differ."""
    one, other = before.model_dump(mode="json"), after.model_dump(mode="json")
    return {
        field: (one[field], other[field])
        for field in one
        if matters(field, before) and one[field] != other[field]
    }
