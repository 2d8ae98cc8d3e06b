"""vramcalc: its total is what torch counts as allocated."""

import json
import tempfile
from pathlib import Path

from protocol import OutOfScopeError, choose, one_device, serve
from vramcalc import estimate

_TARGETS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_NUMERICS = {"bf16": ("bf16", "pure"), "fp32": ("fp32", "pure"), "bf16-autocast": ("bf16", "amp")}


def ask(question):
    """Return the total without its overhead."""
    one_device(question)
    if question["method"] == "qlora":
        raise OutOfScopeError("qlora")
    if question["method"] == "lora" and set(question["lora_targets"]) != _TARGETS:
        raise OutOfScopeError("adapters on other modules than q, k, v and o")
    if question["numerics"] == "bf16-autocast" and question["weight_dtype"] == "bf16":
        raise OutOfScopeError("autocast over bf16 weights")
    dtype, precision = choose(_NUMERICS, question["numerics"], "numerics")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(question["config"]))
        answer = estimate(
            str(path.parent),
            mode="train",
            dtype=dtype,
            precision=precision,
            batch=question["micro_batch"],
            seq_len=question["seq_len"],
            lora_rank=question["lora_rank"] if question["method"] == "lora" else None,
            grad_checkpoint=question["checkpointing"] == "full",
            optimizer=choose({"adamw": "adamw"}, question["optimizer"], "optimizer"),
            attn_impl=question["attention"],
        )
    return answer.total


serve(ask)
