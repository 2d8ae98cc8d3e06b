"""The config of a row's model: the catalog's, one of ``profiles/measured/configs``, or one cut.

Models that a source wrote itself come with their code, from ``own_code``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from batchplan.sources.models import find_catalog_model
from batchplan.sources.profiles_dir import profile_file
from benchmarks.accuracy.case import NotScoredError
from benchmarks.accuracy.rows import MEASURED_DIR

CONFIGS_DIR = MEASURED_DIR / "configs"
_OWN_CODE = Path(__file__).with_name("own_code")

_SAME_ARCHITECTURE = {
    # Other weights, or another name, of a config that the catalog has.
    "Qwen/Qwen2.5-7B-Instruct": "Qwen/Qwen2.5-7B",
    "TheBloke/Mistral-7B-v0.1-GPTQ": "mistralai/Mistral-7B-v0.1",
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "decapoda-research/llama-7b-hf": "meta-llama/Llama-2-7b-hf",
    "decapoda-research/llama-13b-hf": "meta-llama/Llama-2-13b-hf",
    "lmsys/vicuna-7b-v1.5-16k": "meta-llama/Llama-2-7b-hf",
    "lmsys/longchat-13b-16k": "meta-llama/Llama-2-13b-hf",
    "meta-llama/Meta-Llama-3.1-8B": "meta-llama/Llama-3.1-8B",
    "unsloth/Mistral-7B-v0.2": "mistralai/Mistral-7B-v0.1",
}


def model_for(name: str, **overrides: Any) -> str:
    """Return what ``estimate`` takes for a model: a catalog name, or the path of a config.

    Args:
        name: Hub id, or the name of a file in ``profiles/measured/configs`` (``/`` as ``--``).
        **overrides: fields of the config to replace, such as ``num_hidden_layers``.

    Raises:
        NotScoredError: when no config of it is known for certain.
    """
    name = _SAME_ARCHITECTURE.get(name, name)
    own = CONFIGS_DIR / f"{name.replace('/', '--')}.json"
    row = find_catalog_model(name)
    if not own.is_file() and row is None:
        raise NotScoredError(f"no certain config of {name}")
    if not overrides:
        return str(own) if own.is_file() else name
    path = own if own.is_file() else profile_file("models", row.file) if row else own
    config = json.loads(path.read_text(encoding="utf-8")) | overrides
    return written(config)


def written(config: Mapping[str, Any]) -> str:
    """Return the path of a file that holds a config."""
    return str(_written(json.dumps(config, sort_keys=True)))


def own_model(name: str, **overrides: Any) -> str:
    """Return the folder of a model with its own code, which needs ``trust_remote_code``."""
    if not overrides:
        return str(_OWN_CODE / name)
    return str(_changed(name, json.dumps(overrides, sort_keys=True)))


@cache
def _changed(name: str, overrides: str) -> Path:
    folder = Path(_scratch().name) / f"{name}-{_changed.cache_info().currsize}"
    shutil.copytree(_OWN_CODE / name, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | json.loads(overrides)
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that lives as long as the process."""
    return tempfile.TemporaryDirectory(prefix="batchplan-accuracy-")


@cache
def _written(text: str) -> Path:
    path = Path(_scratch().name) / f"config-{_written.cache_info().currsize}.json"
    path.write_text(text, encoding="utf-8")
    return path
