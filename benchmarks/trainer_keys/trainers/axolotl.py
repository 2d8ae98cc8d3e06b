"""Axolotl: the YAML of ``axolotl train``."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from benchmarks.trainer_keys import shapes

SOURCE = (
    "axolotl.utils.schemas.config.AxolotlInputConfig, less the keys it has to refuse; "
    "pydantic models of axolotl.integrations.*.args"
)

_CAPABILITIES = {
    "bf16": True,
    "fp8": False,
    "tf32": True,
    "n_node": 1,
    "compute_capability": "sm_90",
}
"""An H100, so that what an old GPU lacks is not refused here."""


def snapshot() -> dict[str, Any]:
    """Return the keys of the file; those of a plugin name the one that must be listed."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    keys = _plugin_keys() | shapes.of_pydantic(AxolotlInputConfig)
    for name in _refused():
        del keys[name]
    return {"config": {"keys": keys, "open": _open(keys)}}


def _refused() -> list[str]:
    """Return the keys that the schema only has in order to say that they are gone."""
    from axolotl.utils.schemas.deprecated import DeprecatedParameters

    found = []
    for name in DeprecatedParameters.model_fields:
        try:
            DeprecatedParameters.model_validate({name: True})
        except DeprecationWarning:
            found.append(name)
        except ValueError:
            pass  # another type was wanted, of a key that is still taken
    return found


def _plugin_keys() -> shapes.Keys:
    import axolotl.integrations

    keys: shapes.Keys = {}
    for one in pkgutil.iter_modules(axolotl.integrations.__path__, "axolotl.integrations."):
        try:
            module = importlib.import_module(f"{one.name}.args")
        except ImportError:
            continue  # a plugin without options, or one whose library is not installed
        own = [cls for cls in vars(module).values() if _is_model_of(cls, module)]
        nested = {
            model
            for cls in own
            for field in cls.model_fields.values()
            for model in shapes.models_in(field.annotation)
        }
        for cls in set(own) - nested:  # what a section holds is no key of the file
            for name, row in shapes.of_pydantic(cls).items():
                keys[name] = row | {"plugin": one.name}
    return keys


def _is_model_of(cls: Any, module: Any) -> bool:
    from pydantic import BaseModel

    own = isinstance(cls, type) and cls.__module__ == module.__name__
    return own and issubclass(cls, BaseModel)


def _open(keys: shapes.Keys) -> list[str]:
    """Return the dicts whose content nobody checks, and the lists, which hold models."""
    return [
        name
        for name, row in keys.items()
        if {"dict", "list", "any"} & set(row["type"].split("|"))
        and not any(other.startswith(f"{name}.") for other in keys)
    ]


def validate(path: Path, *, world_size: int, **_: Any) -> dict[str, Any]:
    """Check the file with its plugins, on described GPUs; refuse keys that it would ignore."""
    import torch
    import yaml
    from axolotl.utils.config import prepare_plugins, validate_config
    from axolotl.utils.dict import DictDefault

    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = snapshot()["config"]["keys"]
    unknown = sorted(set(document) - set(known))
    if unknown:
        raise ValueError(f"unknown keys, which axolotl ignores: {', '.join(unknown)}")
    config = DictDefault(document)
    prepare_plugins(config)
    version = torch.__version__.partition("+")[0]
    checked = validate_config(
        config, _CAPABILITIES | {"n_gpu": world_size}, {"torch_version": version}
    )
    return dict(checked)
