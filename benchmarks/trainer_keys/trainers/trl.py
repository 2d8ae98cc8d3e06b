"""TRL: ``trl sft --config FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.trainer_keys import shapes
from benchmarks.trainer_keys.trainers import hf_trainer

SOURCE = (
    "trl.scripts.sft.make_parser: ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig; "
    "env of TrlParser; accelerate_config of trl.cli; fsdp_config as in hf-trainer; SFTTrainer"
)

_LAUNCH = ("accelerate_config", "num_processes", "num_machines", "machine_rank")
"""Keys that the command line of ``trl`` hands on to ``accelerate launch``."""


def snapshot() -> dict[str, Any]:
    """Return the keys of the file, and of the object that a script builds."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, SFTTrainer

    keys: shapes.Keys = {"env": shapes.key(dict), "accelerate_config": shapes.key(str)}
    for cls in (ScriptArguments, ModelConfig, DatasetMixtureConfig):
        keys |= shapes.of_dataclass(cls)
    keys |= hf_trainer.arguments_keys(SFTConfig)
    opened = hf_trainer.opened(keys, "env", "model_init_kwargs", "dataset_kwargs", "datasets")
    return {
        "config": {"keys": keys, "open": opened},
        "SFTTrainer": {"keys": shapes.of_signature(SFTTrainer.__init__), "open": []},
    }


def validate(path: Path, **_: Any) -> dict[str, Any]:
    """Parse the file as ``trl sft`` does, but refuse what it would hand to the launcher unseen."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

    hf_trainer.pretend_gpu(path)
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    *parsed, rest = parser.parse_args_and_config(
        ["--config", str(path)], return_remaining_strings=True
    )
    unknown = [one for one in rest[::2] if one.removeprefix("--") not in _LAUNCH]
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(unknown)}")
    return {name: value for part in parsed for name, value in vars(part).items()}
