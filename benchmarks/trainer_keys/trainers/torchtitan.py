"""torchtitan: the flags of ``torchrun -m torchtitan.train``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from benchmarks.trainer_keys import shapes

SOURCE = "torchtitan.config.manager.ConfigManager: tyro flags of these configurations: "

_CONFIGS = {
    "llama3": ("llama3_8b", "llama3_70b", "sft_debugmodel"),
    "qwen3": ("qwen3_0_6b", "qwen3_14b", "qwen3_30b_a3b", "qwen3_32b", "sft_qwen3_8b_math"),
}
"""Models and their configurations; the keys are the union of their flags."""

SOURCE += ", ".join(name for names in _CONFIGS.values() for name in names)

_KINDS = {"INT": int, "FLOAT": float, "STR": str}
_SEVERAL = ("A,B,C,...", "[", "TARGET")
_NO_DEFAULT = object()


def snapshot() -> dict[str, Any]:
    """Return the flags, dotted and with underscores; defaults only where the models agree.

    The one positional, a subcommand, comes last on the command line.
    """
    from torchtitan.config.manager import ConfigManager

    manager = ConfigManager()
    keys = {"module": shapes.key(str), "config": shapes.key(str)}
    for module, names in _CONFIGS.items():
        for name in names:
            config, _ = manager._load_config(["--module", module, "--config", name])
            _merge(keys, _flags(config))
    return {"config": {"keys": keys, "open": []}}


def _merge(keys: shapes.Keys, more: shapes.Keys) -> None:
    for name, row in more.items():
        known = keys.setdefault(name, row)
        if known.get("default") != row.get("default"):
            known.pop("default", None)


def _flags(config: Any) -> shapes.Keys:
    import tyro
    from torchtitan.config.manager import custom_registry

    parser = tyro.extras.get_parser(type(config), default=config, registry=custom_registry)
    keys: shapes.Keys = {}
    for action in parser._actions:
        if isinstance(action.choices, dict):  # a subcommand, with flags of its own
            name = action.dest.split(" ")[0].replace("-", "_")
            choices = [one.partition(":")[2] for one in action.choices]
            keys[name] = shapes.key(str, choices=choices)
            for chosen in action.choices.values():
                keys |= _of_actions(chosen._actions, None)
    return keys | _of_actions(parser._actions, config)


def _of_actions(actions: Any, config: Any) -> shapes.Keys:
    keys = {}
    for action in actions:
        if action.option_strings and action.dest != "help":
            name = action.dest.replace("-", "_")
            default = _NO_DEFAULT if config is None else _at(config, name)
            row = shapes.key(_kind(action), choices=action.choices or ())
            keys[name] = row if default is _NO_DEFAULT else row | _default(default)
    return keys


def _kind(action: Any) -> Any:
    metavar = action.metavar or ""
    if action.nargs == 0:
        return bool
    if metavar.startswith(_SEVERAL) or action.nargs == "*":
        return list
    found = [kind for name, kind in _KINDS.items() if name in metavar.split("|")]
    return found[-1] if found else str


def _default(value: Any) -> dict[str, Any]:
    row = shapes.key(Any, value)
    return {"default": row["default"]} if "default" in row else {}


def _at(config: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if part.isdigit() and isinstance(config, list):
            config = config[int(part)]
        elif isinstance(config, dict):
            config = config.get(part, _NO_DEFAULT)
        else:
            config = getattr(config, part, _NO_DEFAULT)
    return config


def validate(path: Path, **_: Any) -> dict[str, Any]:
    """Parse the flags of the launch command in a file, which may be a shell script."""
    from torchtitan.config.manager import ConfigManager

    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "--module" in line]
    if len(lines) != 1:
        raise ValueError(f"{len(lines)} lines with --module; one launch command was expected")
    words = shlex.split(lines[0], comments=True)
    flags = words[words.index("--module") :]
    config = ConfigManager().parse_args(flags)
    values = {name: _at(config, name) for name in _flags(config)}
    chosen = type(config.activation_checkpoint).__qualname__
    return {name: one for name, one in values.items() if one is not _NO_DEFAULT} | {
        "activation_checkpoint": chosen
    }
