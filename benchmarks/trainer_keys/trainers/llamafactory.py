"""LLaMA-Factory: the YAML of ``llamafactory-cli train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.trainer_keys import shapes
from benchmarks.trainer_keys.trainers import hf_trainer

SOURCE = "llamafactory.hparams.parser._TRAIN_ARGS: its five dataclasses (of transformers<=5.6)"


def snapshot() -> dict[str, Any]:
    """Return the keys of the file."""
    from llamafactory.hparams.parser import _TRAIN_ARGS

    keys: shapes.Keys = {}
    for cls in _TRAIN_ARGS:
        trains = hasattr(cls, "per_device_train_batch_size")
        keys |= hf_trainer.arguments_keys(cls) if trains else shapes.of_dataclass(cls)
    return {"config": {"keys": keys, "open": hf_trainer.opened(keys)}}


def validate(path: Path, **_: Any) -> dict[str, Any]:
    """Parse the file as ``llamafactory-cli`` does; unknown keys are refused."""
    from llamafactory.hparams import get_train_args, parser
    from omegaconf import OmegaConf

    hf_trainer.pretend_gpu(path)
    parser.is_torch_bf16_gpu_available = lambda: True  # for pure_bf16
    document = OmegaConf.to_container(OmegaConf.load(path))
    return {name: one for part in get_train_args(document) for name, one in vars(part).items()}
