"""torchtune: the YAML of ``tune run RECIPE --config``."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

from benchmarks.trainer_keys import shapes

SOURCE = (
    "recipes/*.py: the keys they read, those of {full,lora}_finetune_{single_device,distributed} "
    "apart; the shipped configs of those recipes; signatures of the components that these name"
)

_RECIPES = (
    "full_finetune_distributed",
    "full_finetune_single_device",
    "lora_finetune_distributed",
    "lora_finetune_single_device",
)
"""Those that batchplan writes for; the others only count as known."""


def snapshot() -> dict[str, Any]:
    """Return the keys of our recipes, the union of all as ``config``, and components' arguments.

    A section's keys are the arguments of any component that a shipped config puts there. The role
    ``components`` has them apart, as ``module.component.argument``.
    """
    files: dict[str, Any] = {}
    components: shapes.Keys = {}
    every: shapes.Keys = {}
    for recipe in _recipes():
        keys = _read_keys(recipe.file_path)
        for config in recipe.configs:
            path = _recipes_dir() / "configs" / config.file_path
            if path.is_file():
                _add_config(keys, components, path)
        if recipe.name in _RECIPES:
            files[recipe.name] = {"keys": keys, "open": _open(keys)}
            every |= keys
        else:
            every = keys | every
    return {
        "config": {"keys": every, "open": _open(every)},
        "components": {"keys": components, "open": []},
    } | files


def _recipes() -> list[Any]:
    from torchtune._recipe_registry import get_all_recipes

    folder = _recipes_dir()  # the registry names some that are not shipped
    return [one for one in get_all_recipes() if (folder / one.file_path).is_file()]


def _recipes_dir() -> Path:
    import torchtune

    return Path(torchtune.__file__).parent.parent / "recipes"  # beside it, and not importable


def _read_keys(file: str) -> shapes.Keys:
    """Return what a recipe reads from ``cfg``, as attributes or by ``get``."""
    text = (_recipes_dir() / file).read_text(encoding="utf-8")
    tree = ast.parse(text)
    keys = {
        node.attr: shapes.key(Any)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "cfg"
    }
    return {
        name: row for name, row in keys.items() if name not in ("get", "pop", "items")
    } | shapes.read_in(tree, "cfg")


def _add_config(keys: shapes.Keys, components: shapes.Keys, path: Path) -> None:
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    for name, value in config.items():
        if isinstance(value, dict) and "_component_" in value:
            keys |= shapes.under(name, {"_component_": shapes.key(str)})
            for argument, row in _arguments(value["_component_"]).items():
                keys[f"{name}.{argument}"] = row
                components[f"{value['_component_']}.{argument}"] = row
        elif name not in keys or (keys[name]["type"] == "any" and value is not None):
            keys[name] = shapes.key(_kind(value))


def _kind(value: Any) -> Any:
    return Any if value is None else type(value)


def _arguments(component: str) -> shapes.Keys:
    from torchtune.config._utils import _get_component_from_path

    try:
        found = _get_component_from_path(component)
    except Exception:  # a component of a library that is not installed
        return {}
    function = found.__init__ if inspect.isclass(found) else found
    return shapes.of_signature(function)


def _open(keys: shapes.Keys) -> list[str]:
    return [name for name in ("dataset", "dataset_val") if name in keys]


def validate(path: Path, *, role: str, **_: Any) -> dict[str, Any]:
    """Do what ``tune validate`` does, and refuse the top-level keys that it lets pass."""
    from omegaconf import OmegaConf
    from torchtune import config

    document = OmegaConf.load(path)
    known = snapshot()[role]["keys"]
    unknown = sorted(set(document) - set(known))
    if unknown:
        raise ValueError(f"unknown keys, which the recipes ignore: {', '.join(unknown)}")
    config.validate(document)
    return dict(OmegaConf.to_container(document, resolve=True))
