"""LitGPT: the YAML of ``litgpt finetune_lora --config`` and its siblings, by jsonargparse."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any

from benchmarks.trainer_keys import shapes

SOURCE = "signatures of setup in litgpt.finetune.lora, litgpt.finetune.full and litgpt.pretrain"

_COMMANDS = {
    "finetune_lora": "litgpt.finetune.lora",
    "finetune_full": "litgpt.finetune.full",
    "pretrain": "litgpt.pretrain",
}

_OPEN = ("data.init_args", "optimizer.init_args", "log.metadata")


def snapshot() -> dict[str, Any]:
    """Return the keys of the file for each command; the role is the command's name."""
    files = {}
    for command, module in _COMMANDS.items():
        setup = importlib.import_module(module).setup
        files[command] = {"keys": _keys(setup), "open": list(_OPEN)}
    return files


def _keys(setup: Any) -> shapes.Keys:
    keys = shapes.of_signature(setup)
    for name, parameter in inspect.signature(setup).parameters.items():
        default = parameter.default
        if dataclasses.is_dataclass(default):
            nested = shapes.of_dataclass(type(default))
            for field, row in nested.items():  # each command has defaults of its own
                nested[field] = {**row, "default": getattr(default, field)}
            keys |= shapes.under(name, nested)
    for name in ("data", "optimizer"):
        parts = {"class_path": shapes.key(str), "init_args": shapes.key(dict)}
        keys |= shapes.under(name, parts) | {name: shapes.key(dict | str, None)}
    return keys


def validate(path: Path, *, role: str, **_: Any) -> dict[str, Any]:
    """Parse the file as the command does, without running it."""
    from jsonargparse import auto_parser
    from litgpt.__main__ import PARSER_DATA

    command = role if role in _COMMANDS else "finetune_lora"
    setup = PARSER_DATA[command]
    parser = auto_parser(setup)
    return dict(parser.parse_path(str(path)).as_dict())
