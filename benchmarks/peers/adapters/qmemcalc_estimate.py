"""qmemcalc: its total without the tenth that it adds for buffers."""

import json
import tempfile
from pathlib import Path

from protocol import choose, one_device, serve
from qmemcalc import estimate_memory


def ask(question):
    """Return the total of one device."""
    one_device(question)
    adapts = question["method"] != "full"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(question["config"]))
        found = estimate_memory(
            model_name=folder,
            batch_size=question["micro_batch"],
            seq_len=question["seq_len"],
            lora_r=question["lora_rank"] if adapts else 0,
            num_trainable_params=None if adapts else question["num_params"],
            precision=choose(
                {"bf16": "bf16", "bf16-autocast": "bf16", "fp32": "fp32"},
                question["numerics"],
                "numerics",
            ),
            quantization="4bit" if question["method"] == "qlora" else "none",
            optimizer=choose({"adamw": "adamw"}, question["optimizer"], "optimizer"),
            gradient_checkpointing=question["checkpointing"] == "full",
        )
    return (found["total_MB"] - found["buffers_MB"]) * 10**6


serve(ask)
