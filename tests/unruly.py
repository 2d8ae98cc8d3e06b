"""A model whose own code misbehaves, by the size of the micro-batch or by rank.

What a trial has to survive happens where it would in life: inside the model's forward.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KILLED, HANGS, SEGFAULT, RAISES, EXITS, TOO_LARGE, PYTHON_MEMORY = 2, 3, 4, 5, 6, 7, 8
"""Micro-batches at which it does so; at others it trains."""

_CODE = """
import ctypes, os, signal, time
import torch
from transformers import LlamaConfig, LlamaForCausalLM


class UnrulyConfig(LlamaConfig):
    model_type = "unruly"


class UnrulyForCausalLM(LlamaForCausalLM):
    config_class = UnrulyConfig

    def forward(self, input_ids=None, **kwargs):
        rank = os.environ.get("RANK")
        case = input_ids.shape[0] if rank in (None, "1") else 0
        if case == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if case == 3:
            time.sleep(1000)
        if case == 4:
            ctypes.string_at(0)
        if case == 5:
            raise ValueError("no such thing")
        if case == 6:
            os._exit(7)
        if case == 7:
            torch.empty(1 << 32)
        if case == 8:
            bytearray(1 << 32)
        return super().forward(input_ids=input_ids, **kwargs)
"""
CONFIG = {
    "model_type": "unruly",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 128,
    "auto_map": {
        "AutoConfig": "modeling_unruly.UnrulyConfig",
        "AutoModelForCausalLM": "modeling_unruly.UnrulyForCausalLM",
    },
}


def write_model(folder: Path) -> dict[str, Any]:
    """Write the model's repository; return what a job needs to train it."""
    (folder / "modeling_unruly.py").write_text(_CODE, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return {"config": CONFIG, "model_ref": str(folder), "trust_remote_code": True}
