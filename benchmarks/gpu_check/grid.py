"""What is measured: a fixed grid of configurations, in an order that any budget can cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

MODELS = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "llama-3.1-8b")
"""Of the catalog, so that nothing is fetched: 0.5B to 8B parameters, two of them tied."""
METHODS = {
    "full": {"numerics": "bf16-autocast", "weight_dtype": "fp32"},
    "lora": {"numerics": "bf16", "lora_rank": 16},
    "qlora": {"numerics": "bf16", "lora_rank": 16},
}
"""What is trained, and its dtypes as in a usual fine-tuning run."""
SETTINGS = tuple(product(("none", "full"), (1024, 4096)))
"""Checkpointing and sequence length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration; the micro-batch is what the estimate says fits."""

    model: str
    method: str
    checkpointing: str
    seq_len: int
    fields: tuple[tuple[str, Any], ...]
    """Further inputs of the recipe."""
    max_micro_batch: int = 16

    @property
    def name(self) -> str:
        """What identifies it in tables."""
        return f"{Path(self.model).name} {self.method} {self.checkpointing} {self.seq_len}"

    @property
    def inputs(self) -> dict[str, Any]:
        """Inputs of ``estimate`` and ``probe``, but for the device."""
        return {
            **dict(self.fields),
            "method": self.method,
            "checkpointing": self.checkpointing,
            "seq_len": self.seq_len,
            "offline": True,
        }


def grid() -> Iterator[Case]:
    """Yield every case; each quarter has every model by every method, in other settings."""
    for turn in range(len(SETTINGS)):
        for (place, model), (step, method) in product(enumerate(MODELS), enumerate(METHODS)):
            checkpointing, seq_len = SETTINGS[(place + step + turn) % len(SETTINGS)]
            yield Case(
                model=model,
                method=method,
                checkpointing=checkpointing,
                seq_len=seq_len,
                fields=tuple(METHODS[method].items()),
            )


def tiny_grid(folder: Path) -> Iterator[Case]:
    """Yield a few cases of a model so small that a CPU trains it, its config in ``folder``."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512},
        **{"max_position_embeddings": 512, "tie_word_embeddings": False},
    }
    path = folder / "tiny"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for method, checkpointing in (("full", "none"), ("full", "full"), ("lora", "none")):
        yield Case(
            model=str(path),
            method=method,
            checkpointing=checkpointing,
            seq_len=128,
            fields=(("numerics", "fp32"),),
            max_micro_batch=4,
        )
