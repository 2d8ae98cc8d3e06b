"""accelerate: the YAML of ``accelerate launch --config_file``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from benchmarks.trainer_keys import shapes

SOURCE = (
    "accelerate.commands.config.config_args.ClusterConfig; nested blocks: the options of "
    "launch_command_parser that each block fills"
)

_BLOCKS = {
    "deepspeed_config": ("deepspeed", "zero", "offload", "gradient_"),
    "fsdp_config": ("fsdp_",),
    "fp8_config": ("fp8_",),
    "dynamo_config": ("dynamo_",),
    "megatron_lm_config": ("megatron_lm_",),
    "parallelism_config": ("parallelism_config_",),
    "mpirun_config": ("mpirun_",),
}
"""Which options each block of the file fills, by the start of their names."""

_MAY_DROP_PREFIX = {"fsdp_config": "fsdp_", "fp8_config": "fp8_", "dynamo_config": "dynamo_"}


def snapshot() -> dict[str, Any]:
    """Return the keys of the file.

    ``launch`` copies any key of a block over the option of that name and says nothing of a key that
    no option has.
    """
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import launch_command_parser

    keys = shapes.of_dataclass(ClusterConfig)
    options = _options(launch_command_parser())
    for block, starts in _BLOCKS.items():
        taken = {name: one for name, one in options.items() if name.startswith(starts)}
        bare = _MAY_DROP_PREFIX.get(block)
        if bare:
            taken |= {name.removeprefix(bare): one for name, one in taken.items()}
        keys |= shapes.under(block, taken)
    return {"config": {"keys": keys, "open": []}}


def _options(parser: argparse.ArgumentParser) -> shapes.Keys:
    """Return the options; what a command line spells is a bool or a number in a file."""
    options = shapes.of_parser(parser)
    for action in parser._actions:
        one = options.get(action.dest)
        if one is None:
            continue
        spelt = one.get("default") in ("true", "false")
        if spelt:
            one["default"] = one["default"] == "true"
        if one["type"] != "str":
            continue
        if spelt or "(true|false)" in (action.help or ""):
            one["type"] = "bool|str"
        elif one.get("choices") and all(choice.isdigit() for choice in one["choices"]):
            one |= {"type": "int", "choices": [int(choice) for choice in one["choices"]]}
            one["default"] = int(one["default"])
    return options


def validate(path: Path, **_: Any) -> dict[str, Any]:
    """Go as far as the launcher goes before it starts a process, then build the FSDP plugin."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    os.chdir(path.parent)
    config = load_config_from_file(str(path))
    _refuse_unknown(config, snapshot()["config"]["keys"])
    parsed = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    arguments, *_rest = _validate_launch_command(parsed)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(arguments)
    else:
        environment = prepare_multi_gpu_env(arguments)
    found = {name: value for name, value in environment.items() if name not in os.environ}
    report: dict[str, Any] = {"launch": vars(arguments), "environment": found}
    if arguments.use_fsdp:
        os.environ.update(found)
        report["fsdp_plugin"] = vars(FullyShardedDataParallelPlugin())
    return report


def _refuse_unknown(config: Any, known: shapes.Keys) -> None:
    for block in _BLOCKS:
        for name in getattr(config, block) or {}:
            if f"{block}.{name}" not in known:
                raise ValueError(f"{block} has the unknown key {name}, which launch ignores")
