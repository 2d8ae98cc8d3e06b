"""The rows that other tools are asked about, in words that none of them shares with batchplan."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from batchplan.sources.models import find_catalog_model
from batchplan.sources.profiles_dir import profile_file
from batchplan.spec import Recipe
from benchmarks.accuracy import results
from benchmarks.accuracy.case import NotScoredError
from benchmarks.accuracy.models import model_for
from benchmarks.accuracy.replay import MATCHED
from benchmarks.accuracy.rows import Row, load_rows
from benchmarks.accuracy.sources import case_of

_PLAIN = (
    "devices",
    "micro_batch",
    "accum_steps",
    "seq_len",
    "method",
    "lora_rank",
    "numerics",
    "weight_dtype",
    "optimizer",
    "checkpointing",
    "attention",
    "sharding",
    "double_quant",
)

_LITGPT_WORDS = {
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "projection": ("o_proj",),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One row."""

    row_id: str
    source: str
    measured: int
    our_error: float
    document: dict[str, Any]


def questions() -> list[Question]:
    """Return every open, averaged row with an allocated peak and a plain config."""
    cases = {row.id: (row, case_of(row)) for row in load_rows() if row.id in _scores()}
    found = []
    for row_id, (error, measured) in _scores().items():
        row, case = cases[row_id]
        config = _config(case.model) or _config(_plain_name(row))
        if config is None or not case.has_step:
            continue
        fields = Recipe().model_dump(mode="json") | dict(case.fields)
        words = [name for name in str(fields["lora_targets"]).split(",") if name]
        targets = [name for word in words for name in _LITGPT_WORDS.get(word, (word,))]
        num_params, largest = _sizes(json.dumps(config, sort_keys=True))
        document = {name: fields[name] for name in _PLAIN} | {
            "config": config,
            "num_params": num_params,
            "largest_layer": largest,
            "lora_targets": targets,
            "trained_share": 1.0 if fields["method"] == "full" else 0.001,
        }
        found.append(
            Question(
                row_id=row_id,
                source=row.source_group,
                measured=measured,
                our_error=error,
                document=document,
            )
        )
    return found


@cache
def _scores() -> dict[str, tuple[float, int]]:
    kept = [one for one in results.load().scores if one.is_counted]
    return {
        score.row_id: (comparison.error, comparison.measured[0])
        for score in results.with_versions(kept, MATCHED)
        for comparison in score.comparisons
        if comparison.quantity == "allocated" and comparison.measured[0] == comparison.measured[1]
    }


def _plain_name(row: Row) -> str:
    """Return the model of transformers that a row names; nothing where none is known."""
    try:
        return model_for(row.model or "")
    except NotScoredError:
        return ""


def _config(model: str) -> dict[str, Any] | None:
    """Return a model's config, or None where transformers has none."""
    row = find_catalog_model(model)
    path = profile_file("models", row.file) if row else Path(model)
    if not path.is_file():
        return None
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return None if config["model_type"] == "litgpt" else config


@cache
def _sizes(config: str) -> tuple[int, int]:
    """Return the parameters of a model and of its largest module, as DeepSpeed counts it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = json.loads(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(fields.pop("model_type"), **fields)
        )
    own = [
        sum(one.numel() for one in module.parameters(recurse=False)) for module in model.modules()
    ]
    return sum(one.numel() for one in model.parameters()), max(own)
