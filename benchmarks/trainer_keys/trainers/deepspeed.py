"""DeepSpeed: ``DeepSpeedConfig`` of a JSON file.

Its top level is read key by key and ignores what it does not know, so the keys are found by handing
it a dict that writes down what it is asked for.
"""

from __future__ import annotations

import contextlib
import json
import unittest.mock
from pathlib import Path
from typing import Any

from benchmarks.trainer_keys import shapes

SOURCE = "deepspeed.runtime.config.DeepSpeedConfig: the keys it reads, and its pydantic sections"

_RECORDED = (
    *("optimizer", "scheduler", "activation_checkpointing", "flops_profiler", "checkpoint"),
    *("data_types", "aio", "torch_autocast"),
)
"""Sections without a model of their own."""

_READ_WITH = {"optimizer": {"type": "AdamW"}, "scheduler": {"type": "WarmupLR"}}
"""What has to stand in a section before the rest of it is read."""

_OPEN = (
    *("autotuning", "checkpoint.parallel_write", "checkpoint.writer", "data_efficiency"),
    *("datastates_ckpt", "expert_parallel", "optimizer.params", "pipeline", "scheduler.params"),
    *("timers", "weight_quantization"),
)

_NO_DEFAULT_TYPES: dict[str, Any] = {
    "train_batch_size": int,
    "train_micro_batch_size_per_gpu": int,
    "gradient_accumulation_steps": int,
    "steps_per_print": int,
    "sequence_parallel_size": int,
    "optimizer.type": str,
    "optimizer.params": dict,
    "optimizer.legacy_fusion": bool,
    "scheduler.type": str,
    "scheduler.params": dict,
    "communication_data_type": str,
    "activation_checkpointing.number_checkpoints": int,
    "data_types.grad_accum_dtype": str,
    "data_types.param_dtype": str,
    "data_types.buffer_dtype": str,
    "torch_autocast.dtype": str,
    "torch_autocast.lower_precision_safe_modules": list,
}
"""What a key holds that is read without a default to tell it; from runtime/constants.py."""


class _Asked(dict):  # type: ignore[type-arg]
    """A dict that writes down which keys it is asked for, with the default that came along."""

    def __init__(self, *content: Any) -> None:
        super().__init__(*content)
        self.asked: dict[str, Any] = {}

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.setdefault(name, default)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.asked.setdefault(str(name), None)
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        self.asked.setdefault(name, None)
        return super().__getitem__(name)

    def keys(self) -> Any:
        return self  # ``name in document.keys()`` asks as well

    def __copy__(self) -> _Asked:
        return self


def snapshot() -> dict[str, Any]:
    """Return the keys of the file."""
    keys = _asked_keys() | _section_keys()
    return {"config": {"keys": keys, "open": list(_OPEN)}}


def _asked_keys() -> shapes.Keys:
    from deepspeed.runtime import config

    removed = config._REMOVED_TOP_LEVEL_CONFIG_KEYS
    sections: dict[str, _Asked] = {"": _Asked({"train_batch_size": 1})}
    for name in ("", *_RECORDED):
        if name:
            sections[name] = sections[""][name] = _Asked(_READ_WITH.get(name, {}))
        with _in_a_world(config), contextlib.suppress(KeyError, config.DeepSpeedConfigError):
            config.DeepSpeedConfig(sections[""])  # one that wants a value has said which
    keys: shapes.Keys = {}
    for section, asked in sections.items():
        for name, default in asked.asked.items():
            full = f"{section}.{name}".lstrip(".")
            if full not in removed:
                keys[full] = shapes.key(dict if full in sections else _kind(full, default), default)
    return keys


def _kind(name: str, default: Any) -> Any:
    return _NO_DEFAULT_TYPES.get(name, Any) if default is None else type(default)


def _section_keys() -> shapes.Keys:
    """Return the keys of the sections that pydantic checks; a typo in one of them is refused."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor import config as monitor
    from deepspeed.runtime.config import HybridEngineConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    models = {
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "zero_optimization": DeepSpeedZeroConfig,
        "comms_logger": CommsLoggerConfig,
        "compile": CompileConfig,
        "hybrid_engine": HybridEngineConfig,
        "tensor_parallel": TPTrainingConfig,
        "tensorboard": monitor.TensorBoardConfig,
        "wandb": monitor.WandbConfig,
        "csv_monitor": monitor.CSVConfig,
        "comet": monitor.CometConfig,
    }
    keys: shapes.Keys = {}
    for name, model in models.items():
        keys |= shapes.under(name, shapes.of_pydantic(model))
    return keys


def validate(path: Path, *, world_size: int, **_: Any) -> dict[str, Any]:
    """Build the configuration for that many data-parallel ranks.

    ``"auto"`` is for the libraries that fill it in (see hf-trainer), not for DeepSpeed itself; it
    is taken out before, and the micro-batch is 1 where the file leaves the batch to them.
    """
    from deepspeed.runtime import config

    class World:
        def get_data_parallel_world_size(self) -> int:
            return world_size

    document = _without_auto(json.loads(path.read_text(encoding="utf-8")))
    if not {"train_batch_size", "train_micro_batch_size_per_gpu"} & set(document):
        document["train_micro_batch_size_per_gpu"] = 1
    with _in_a_world(config):
        built = config.DeepSpeedConfig(document, mpu=World())
    return {name: _simple(value) for name, value in vars(built).items() if name[0] != "_"}


def _in_a_world(config: Any) -> Any:
    """Give the process a rank; without one, DeepSpeed does not ask how large the world is."""
    return unittest.mock.patch.object(config.dist, "get_rank", return_value=0)


def _without_auto(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _without_auto(one) for name, one in document.items() if one != "auto"}
    return document


def _simple(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value
