"""torchtitan's registered configurations: which model each is for, and what it sets.

Source: torchtitan ``models/*/config_registry.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.spec import Checkpointing


@dataclass(frozen=True, slots=True)
class Registered:
    """A configuration of torchtitan, and what it sets that a plan decides."""

    module: str
    name: str
    repositories: tuple[str, ...]
    """With such weights on the Hub, the base model first."""
    micro_batch: int
    seq_len: int
    checkpointing: Checkpointing


_SELECTIVE, _FULL = Checkpointing.SELECTIVE, Checkpointing.FULL
_LLAMA_8B = ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct")
_LLAMA_70B = (
    "meta-llama/Llama-3.1-70B",
    "meta-llama/Llama-3.1-70B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct",
)
REGISTERED = (
    Registered("llama3", "llama3_8b", _LLAMA_8B, 1, 8192, _SELECTIVE),
    Registered("llama3", "llama3_70b", _LLAMA_70B, 8, 8192, _FULL),
    Registered("qwen3", "qwen3_0_6b", ("Qwen/Qwen3-0.6B",), 4, 4096, _SELECTIVE),
    Registered("qwen3", "qwen3_1_7b", ("Qwen/Qwen3-1.7B",), 4, 4096, _SELECTIVE),
    Registered("qwen3", "sft_qwen3_8b_math", ("Qwen/Qwen3-8B",), 1, 2048, _SELECTIVE),
    Registered("qwen3", "qwen3_14b", ("Qwen/Qwen3-14B",), 4, 4096, _FULL),
    Registered("qwen3", "qwen3_30b_a3b", ("Qwen/Qwen3-30B-A3B",), 2, 4096, _FULL),
    Registered("qwen3", "qwen3_32b", ("Qwen/Qwen3-32B",), 2, 4096, _FULL),
)
"""Those in which flags can decide everything: llama3_405b computes in float8, and no flag says
otherwise; deepseek_v3's compile and shard experts."""


def registered_for(model_id: str) -> Registered | None:
    """Return the configuration of a model, by the last part of its id or path.

    >>> registered_for("./Meta-Llama-3.1-8B").name, registered_for("openai-community/gpt2")
    ('llama3_8b', None)
    """
    wanted = _last_part(model_id)
    return next((one for one in REGISTERED if wanted in map(_last_part, one.repositories)), None)


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")


def registered_as(name: object) -> Registered | None:
    """Return the configuration of that name, or None where none is known."""
    return next((one for one in REGISTERED if one.name == name), None)


def repository_of(found: Registered, folder: str) -> str:
    """Return the model's id, by the folder of its assets where that tells one from others."""
    named = [one for one in found.repositories if _last_part(one) == _last_part(folder)]
    return (named or found.repositories)[0]
