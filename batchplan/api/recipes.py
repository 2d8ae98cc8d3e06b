"""The recipe: what the user gave, over a recipe file, over the defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from batchplan.api.checks import checked, option, shown
from batchplan.errors import SpecError, UnknownNameError
from batchplan.spec import Method, Numerics, Optimizer, Recipe, Sharding
from batchplan.states.numerics import resolve_dtypes

RECIPE_FIELDS = tuple(Recipe.model_fields)
_ZERO = (Sharding.DDP, Sharding.ZERO1, Sharding.ZERO2, Sharding.ZERO3)
_LARGEST_FILE = 1 << 16


def given_fields(fields: Mapping[str, Any], file: str | PathLike[str] | None) -> dict[str, Any]:
    """Return the recipe fields that were given, checked against each other but not yet filled.

    Raises:
        SpecError: when the file is unreadable, or ``zero`` and ``sharding`` disagree.
    """
    given = read_recipe_file(file) if file is not None else {}
    direct = {name: value for name, value in fields.items() if value is not None}
    if "zero" in direct and "sharding" not in direct:
        given.pop("sharding", None)
    if "sharding" in direct and "zero" not in direct:
        given.pop("zero", None)
    given |= direct
    zero = given.pop("zero", None)
    if zero is not None:
        sharding = _from_stage(zero)
        if given.get("sharding") not in (None, sharding, sharding.value):
            raise SpecError(
                f"--zero {zero} means --sharding {sharding.value}, which contradicts "
                f"--sharding {given['sharding']}. Give one of them."
            )
        given["sharding"] = sharding
    return given


def fill(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Recipe:
    """Return the recipe: what was given over the defaults.

    Raises:
        SpecError: when a value is not allowed.
    """
    return checked(Recipe, {**defaults, **given})


DTYPE_FIELDS = ("weight_dtype", "grad_dtype", "optimizer_dtype", "master_weights")
_WITHOUT_DTYPE = (Optimizer.SGD, Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT)
"""Optimizers without moments, or with moments in a format of their own."""


def numerics_words(recipe: Recipe) -> str:
    """Return the named numerics, or every dtype where some were given apart from the name.

    >>> numerics_words(Recipe(weight_dtype="fp16", grad_dtype="fp32", master_weights=False))
    'weights fp16, gradients fp32, moments fp32, no master copies'
    """
    if all(getattr(recipe, name) is None for name in (*DTYPE_FIELDS, "adapter_dtype")):
        return recipe.numerics.value
    dtypes = resolve_dtypes(recipe)
    if recipe.method is Method.FULL:
        words = [f"weights {dtypes.weights}"]
    else:
        base = "nf4" if recipe.method is Method.QLORA else dtypes.frozen
        words = [f"base {base}", f"adapters {dtypes.weights}"]
    words.append(f"gradients {dtypes.gradients}")
    if recipe.optimizer not in _WITHOUT_DTYPE:
        words.append(f"moments {dtypes.optimizer}")
    words.append("fp32 master copies" if dtypes.has_master else "no master copies")
    return ", ".join(words)


def checkpoint_numerics(config: Mapping[str, Any]) -> Numerics:
    """Return the numerics of a model loaded in the dtype its checkpoint was saved in."""
    text_config = config.get("text_config")
    inner = text_config if isinstance(text_config, Mapping) else {}
    for holder in (config, inner):
        dtype = holder.get("dtype") or holder.get("torch_dtype")
        if dtype is not None:
            return _CHECKPOINT_DTYPES.get(str(dtype).removeprefix("torch."), Numerics.FP32)
    return Numerics.FP32


_CHECKPOINT_DTYPES = {"bfloat16": Numerics.BF16, "float16": Numerics.FP16}


def read_recipe_file(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the fields that a recipe file holds.

    Raises:
        SpecError: when it cannot be read, is no mapping, or holds a key that is no field.
    """
    import yaml

    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise SpecError(f"Cannot read recipe {path}: {error.strerror or error}.") from None
    if len(content) > _LARGEST_FILE:
        raise SpecError(f"Recipe {path} is larger than 64 KiB; that is no recipe.")
    try:
        data = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"Recipe {path} is not YAML: {reason}.") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SpecError(f"Recipe {path} must hold `name: value` lines, not {shown(data)}.")
    fields = {str(name).replace("-", "_"): value for name, value in data.items()}
    _refuse_unknown(f"key in recipe {path}", fields, (*RECIPE_FIELDS, "zero"))
    return {name: value for name, value in fields.items() if value is not None}


def _refuse_unknown(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = tuple(known)
    for name in names:
        if name not in known:
            raise UnknownNameError(kind, name, known)


def _from_stage(zero: object) -> Sharding:
    stage = int(zero) if isinstance(zero, str) and zero.isdigit() else zero
    if isinstance(stage, bool) or not isinstance(stage, int) or not 0 <= stage < len(_ZERO):
        raise SpecError(f"{option('zero')} {shown(zero)}: must be 0, 1, 2 or 3.")
    return _ZERO[stage]
