"""Unsloth: a Python script; the arguments of the calls that it makes.

Importing unsloth wants a GPU, so its signatures are read from its source. The environment's trl is
the newest that it takes.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

from benchmarks.trainer_keys import shapes
from benchmarks.trainer_keys.trainers import hf_trainer

SOURCE = (
    "unsloth/models/loader.py FastLanguageModel.from_pretrained; unsloth/models/llama.py "
    "FastLlamaModel.get_peft_model; trl.SFTConfig of the newest trl that unsloth takes"
)

_CALLS = {
    "from_pretrained": ("models/loader.py", "FastLanguageModel"),
    "get_peft_model": ("models/llama.py", "FastLlamaModel"),
}

_KINDS = {"int": int, "float": float, "str": str, "bool": bool}


def snapshot() -> dict[str, Any]:
    """Return the arguments of the two calls, and as ``config`` those of SFTConfig."""
    from trl import SFTConfig

    keys = hf_trainer.arguments_keys(SFTConfig)
    opened = hf_trainer.opened(keys, "model_init_kwargs", "dataset_kwargs")
    files = {"config": {"keys": keys, "open": opened}}
    for name, (file, cls) in _CALLS.items():
        files[name] = {"keys": _arguments(file, cls, name), "open": []}
    return files


def _arguments(file: str, cls: str, method: str) -> shapes.Keys:
    spec = importlib.util.find_spec("unsloth")
    if spec is None or spec.origin is None:
        raise ImportError("unsloth is not installed")
    text = (Path(spec.origin).parent / file).read_text(encoding="utf-8")
    (owner,) = (one for one in ast.parse(text).body if getattr(one, "name", "") == cls)
    (function,) = (one for one in owner.body if getattr(one, "name", "") == method)
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    defaults = dict(zip(names[::-1], function.args.defaults[::-1], strict=False))
    keyword = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    defaults |= {one.arg: default for one, default in keyword if default is not None}
    keys = {}
    for name in (*names, *(one.arg for one in function.args.kwonlyargs)):
        if name in defaults and isinstance(defaults[name], (ast.Constant, ast.List)):
            value = ast.literal_eval(defaults[name])
            keys[name] = shapes.key(type(value) if value is not None else Any, value)
        else:
            keys[name] = shapes.key(Any)
    return keys


def validate(path: Path, **_: Any) -> dict[str, Any]:
    """Check the keyword arguments of a script's calls, which is read and never run.

    SFTConfig is built from those that are literals; the two calls are compared with the source.
    """
    hf_trainer.pretend_gpu(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known = snapshot()
    values: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            role = "config" if name == "SFTConfig" else name
            if role in known:
                given = {one.arg: _literal(one.value) for one in node.keywords if one.arg}
                unknown = sorted(set(given) - set(known[role]["keys"]))
                if unknown:
                    raise TypeError(f"{name} has no arguments {', '.join(unknown)}")
                values[name] = _built(given) if name == "SFTConfig" else given
    missing = {"from_pretrained", "SFTConfig"} - set(values)
    if missing:
        raise ValueError(f"the script has no call of {' and '.join(sorted(missing))}")
    return values


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return f"<{ast.unparse(node)}>"  # a name of the script


def _built(given: dict[str, Any]) -> dict[str, Any]:
    from trl import SFTConfig

    return dict(vars(SFTConfig(**given)))
