"""Optimizers by transformers' names. Source: transformers ``training_args.py, OptimizerNames``."""

from __future__ import annotations

from batchplan.configfile import ConfigFile, Finding
from batchplan.spec import Optimizer, OptimizerImpl, Recipe
from batchplan.trainers.keymap import not_understood, read_at
from batchplan.trainers.reading import Read

_ADAMW = {
    OptimizerImpl.FUSED: "adamw_torch_fused",
    OptimizerImpl.FOREACH: "adamw_torch",
}
_OTHERS = {
    Optimizer.ADAMW_8BIT: "adamw_bnb_8bit",
    Optimizer.PAGED_ADAMW_8BIT: "paged_adamw_8bit",
    Optimizer.ADAFACTOR: "adafactor",
    Optimizer.SGD: "sgd",
    Optimizer.SGD_MOMENTUM: "sgd",
    Optimizer.LION: "lion_32bit",
}
_ALIASES = {"adamw_8bit": Optimizer.ADAMW_8BIT, "adamw_hf": Optimizer.ADAMW}
OPTIMIZERS = (Optimizer.ADAMW, *_OTHERS)
"""Those that have a name."""
IMPLEMENTATIONS = tuple(_ADAMW)
MOMENTUM = "momentum=0.9"
"""``optim_args`` of SGD with momentum."""


def optim_name(recipe: Recipe) -> str:
    """Return transformers' name of the recipe's optimizer."""
    return _OTHERS.get(recipe.optimizer) or _ADAMW[recipe.optimizer_impl]


def read_optim(
    file: ConfigFile, key: str = "optim", args_key: str = "optim_args"
) -> Read | Finding | tuple[Read, ...]:
    """Return the optimizer that a file names, and how it runs; a finding where nobody knows it."""
    name = file.get(*key.split("."))
    if name is None:
        return ()
    for implementation, theirs in _ADAMW.items():
        if name == theirs:
            return (
                read_at(file, "optimizer", Optimizer.ADAMW.value, *key.split(".")),
                read_at(file, "optimizer_impl", implementation.value, *key.split(".")),
            )
    if name == "sgd":
        has_momentum = "momentum" in str(file.get(*args_key.split("."), default=""))
        kind = Optimizer.SGD_MOMENTUM if has_momentum else Optimizer.SGD
        return read_at(file, "optimizer", kind.value, *key.split("."))
    known = {theirs: ours for ours, theirs in _OTHERS.items()} | _ALIASES
    if not isinstance(name, str) or name not in known:
        return not_understood(file, key, name)
    return read_at(file, "optimizer", known[name].value, *key.split("."))
