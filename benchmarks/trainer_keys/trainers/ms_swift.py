"""ms-swift: the YAML of ``swift sft``, which becomes a command line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.trainer_keys import shapes
from benchmarks.trainer_keys.trainers import hf_trainer

SOURCE = "swift.arguments.SftArguments; ENV of swift.cli.main"

_TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 32,
}
_STAND_IN = {"model_type": "llama", "template": "dummy"}


def snapshot() -> dict[str, Any]:
    """Return the keys of the file."""
    from swift.arguments import SftArguments

    keys = {"ENV": shapes.key(dict)} | shapes.of_dataclass(SftArguments)
    opened = hf_trainer.opened(keys, "ENV", "accelerator_config", "fsdp_config", "model_kwargs")
    return {"config": {"keys": keys, "open": opened}}


def validate(path: Path, **_: Any) -> dict[str, Any]:
    """Parse the command line that ``swift`` makes of the file.

    Parsing looks into the model's folder, so a tiny one stands in for it and for its template.
    """
    from swift.arguments import SftArguments
    from swift.cli.main import parse_yaml_args
    from swift.utils import parse_args

    hf_trainer.pretend_gpu(path)
    words = [str(path)]
    parse_yaml_args(words)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_TINY), encoding="utf-8")
        # Of two flags the last counts; it makes its output folder at once.
        for name, value in ({"model": folder, "output_dir": folder} | _STAND_IN).items():
            words += [f"--{name}", value]
        arguments, rest = parse_args(SftArguments, words)
    if rest:
        raise ValueError(f"unknown arguments: {' '.join(rest)}")
    # What the trainer gets in the end: the optimizer steps of a warmup ratio, for one.
    return vars(arguments) | vars(arguments.training_args)
