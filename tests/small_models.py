"""Models of the catalog cut to a few layers, and scripts that run them in a process of their own.

Only layers and vocabulary shrink: on fake tensors every width costs the same, and with their own
widths, and few logits, it is the layers that decide the peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from batchplan.profile import SCHEMA_VERSION, ActivationProfile
from batchplan.sources import list_models, resolve_model

NUM_LAYERS = 6
LAYER_KEYS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    *("num_decoder_layers", "encoder_layers", "decoder_layers"),
)
TOKEN_KEYS = ("_token_id", "_token_index")


def families() -> list[str]:
    """One model of every family and class in the catalog."""
    found: dict[Any, str] = {}
    for model in list_models():
        config = resolve_model(model.id).config
        found.setdefault((config["model_type"], *config["architectures"]), model.id)
    return list(found.values())


def config_of(
    model: str, num_layers: int = NUM_LAYERS, *, vocabulary: int | None = None
) -> dict[str, Any]:
    """The catalog's config with a few layers, every list of one item a layer cut alike."""
    config = dict(resolve_model(model).config)
    whole = {config[key] for key in LAYER_KEYS if key in config}
    for key, value in config.items():
        if key in LAYER_KEYS:
            config[key] = min(value, num_layers)
        elif isinstance(value, list) and len(value) in whole:
            config[key] = value[:num_layers]
    if vocabulary is not None:
        config["vocab_size"] = vocabulary
        for key, value in config.items():
            if key.endswith(TOKEN_KEYS) and isinstance(value, int) and value >= vocabulary:
                config[key] = 0
    return config


def profile_of(reply: dict[str, Any]) -> ActivationProfile:
    """The profile in a worker's reply."""
    assert "error" not in reply, reply
    return ActivationProfile.from_dict({"schema_version": SCHEMA_VERSION, **reply["profile"]})


def run_script(name: str, asked: list[Any], *arguments: str) -> list[Any]:
    """Run one of the scripts beside this file on a list of cases."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / name), *arguments],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    replies: list[Any] = json.loads(done.stdout)
    return replies
