"""DeepSpeed's JSON, as transformers and accelerate complete it or with numbers of its own.

Keys: deepspeed ``runtime/config.py``, ``runtime/zero/config.py``. ``"auto"`` works only under
transformers and accelerate, which put in the values of their own config (transformers
``integrations/deepspeed.py, HfTrainerDeepSpeedConfig``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from batchplan.configfile import ConfigFile
from batchplan.spec import Offload, Recipe, Sharding, ZeroBuckets
from batchplan.states.zero import (
    persistence_threshold,
    prefetch_elements,
    reduce_bucket_elements,
)
from batchplan.trainers.keymap import read_at
from batchplan.trainers.reading import Read

STAGE = {Sharding.DDP: 0, Sharding.ZERO1: 1, Sharding.ZERO2: 2, Sharding.ZERO3: 3}
_SHARDING = {stage: sharding for sharding, stage in STAGE.items()}
AUTO = "auto"
_BUCKETS = (
    ("reduce_bucket_size", reduce_bucket_elements),
    ("stage3_prefetch_bucket_size", prefetch_elements),
    ("stage3_param_persistence_threshold", persistence_threshold),
)
"""The first exists at every stage. DeepSpeed's own sizes do not depend on the model's width."""
TRIPLE = (
    ("train_micro_batch_size_per_gpu", "micro_batch"),
    ("gradient_accumulation_steps", "accum_steps"),
    ("train_batch_size", "global_batch"),
)


def offloads(recipe: Recipe) -> bool:
    """Whether anything lives in host memory; DeepSpeed then runs its own CPU AdamW."""
    return recipe.offload is not Offload.NONE


def auto_config(recipe: Recipe) -> dict[str, Any]:
    """Return the JSON that transformers completes from its TrainingArguments."""
    config: dict[str, Any] = {
        **{key: AUTO for key, _ in TRIPLE},
        "gradient_clipping": AUTO,
        "bf16": {"enabled": AUTO},
        "fp16": {"enabled": AUTO},
        "zero_optimization": zero_optimization(recipe),
    }
    if offloads(recipe):
        params = {"lr": AUTO, "betas": AUTO, "eps": AUTO, "weight_decay": AUTO}
        config["optimizer"] = {"type": "AdamW", "params": params}
    return config


def zero_optimization(recipe: Recipe) -> dict[str, Any]:
    """Return the block of that name, with bucket sizes as ``"auto"`` or DeepSpeed's own numbers.

    Below stage 3 ``overlap_comm`` doubles the bucket, which memory is not planned with: it is on
    only where the bucket is small.
    """
    stage = STAGE[recipe.sharding]
    is_auto = recipe.zero_buckets is ZeroBuckets.AUTO
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": stage == 3 or is_auto,
        "contiguous_gradients": True,
    }
    known = _BUCKETS if stage == 3 else _BUCKETS[:1]
    zero |= {key: AUTO if is_auto else size(recipe, 0) for key, size in known}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if offloads(recipe):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if recipe.offload is Offload.PARAMS:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return zero


def to_json(config: dict[str, Any]) -> str:
    """Return a config as text."""
    return json.dumps(config, indent=2) + "\n"


def is_deepspeed(file: ConfigFile) -> bool:
    """Whether a file is DeepSpeed's."""
    return any(key in file for key in ("zero_optimization", "train_micro_batch_size_per_gpu"))


def read_deepspeed(file: ConfigFile) -> Iterator[Read]:
    """Yield what a DeepSpeed config says, in a file of its own or as the part of another.

    ``"auto"`` says nothing. ``cast`` is the dtype that is switched on, ``bf16`` or ``fp16``; the
    engine keeps fp32 copies at stage 0 too (``runtime/engine.py, _configure_fp16_optimizer``).
    """
    stage = file.get("zero_optimization", "stage", default=0)
    stage = stage if type(stage) is int else 0
    if stage in _SHARDING:
        yield read_at(file, "sharding", _SHARDING[stage].value, "zero_optimization", "stage")
    yield from _offload(file)
    bucket = file.get("zero_optimization", "reduce_bucket_size")
    if stage:
        buckets = "auto" if bucket == AUTO else "default"
        yield read_at(file, "zero_buckets", buckets, "zero_optimization", "reduce_bucket_size")
    for key, option in TRIPLE:
        value = file.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            yield read_at(file, option, value, key)
    for half in ("bf16", "fp16"):
        if file.get(half, "enabled") is True:
            says = ("cast", half) if stage else ("numerics", f"{half}-master")
            yield read_at(file, *says, half, "enabled")
    rate = file.get("optimizer", "params", "lr")
    if isinstance(rate, float):
        yield read_at(file, "learning_rate", rate, "optimizer", "params", "lr")


def _offload(file: ConfigFile) -> Iterator[Read]:
    def device(name: str) -> object:
        return file.get("zero_optimization", name, "device", default="none")

    if device("offload_param") not in ("none", None):
        name = ("zero_optimization", "offload_param", "device")
        yield read_at(file, "offload", Offload.PARAMS.value, *name)
    elif device("offload_optimizer") not in ("none", None):
        name = ("zero_optimization", "offload_optimizer", "device")
        yield read_at(file, "offload", Offload.OPTIMIZER.value, *name)
