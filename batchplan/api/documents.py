"""Typed answers as plain data: the JSON that the command line prints (schema version 1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from batchplan.memory import Estimate
from batchplan.planner.plan import Plan, Rescue
from batchplan.spec import Batch, Caveat, Gpu, ModelInfo, Recipe, Spec

SCHEMA_VERSION = 1


def plain(value: Any) -> Any:
    """Return dataclasses, specs, enums and tuples as plain JSON data."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Spec):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def model_document(model: ModelInfo, num_params: int, num_trainable: int) -> dict[str, Any]:
    """Return which model was resolved, and how large it is."""
    return {
        "id": model.id,
        "architecture": model.architecture,
        "num_params": num_params,
        "num_trainable_params": num_trainable,
        "source": model.source,
        "revision": model.revision,
        "max_seq_len": model.max_seq_len,
    }


def batch_document(batch: Batch) -> dict[str, Any]:
    """Return the split of one optimizer step and its products."""
    return {
        "micro_batch": batch.micro_batch,
        "accum_steps": batch.accum_steps,
        "num_ranks": batch.num_ranks,
        "seq_len": batch.seq_len,
        "global_batch_size": batch.global_batch_size,
        "global_batch_tokens": batch.global_batch_tokens,
    }


def memory_document(memory: Estimate) -> dict[str, Any]:
    """Return the bill; its terms sum to ``peak_bytes``."""
    return {
        "peak_bytes": memory.peak_bytes,
        "peak_phase": memory.peak_phase,
        "allocated_peak_bytes": memory.allocated_peak_bytes,
        "reserved_peak_bytes": memory.reserved_peak_bytes,
        "in_use_peak_bytes": memory.in_use_peak_bytes,
        "host_bytes": memory.host_bytes,
        "terms": [
            {
                "name": term.name,
                "bytes": term.num_bytes,
                "formula": term.formula,
                "source": term.source,
            }
            for term in memory.terms
        ],
        "timeline": [
            {"phase": moment.phase, "stage": moment.stage, "bytes": moment.num_bytes}
            for moment in memory.timeline
        ],
        "error": plain(memory.in_use_error),
        "errors": {
            "allocated": plain(memory.allocated_error),
            "reserved": plain(memory.reserved_error),
            "in_use": plain(memory.in_use_error),
        },
        "bound_bytes": memory.bound_bytes,
    }


def device_document(gpu: Gpu) -> dict[str, Any]:
    """Return the device and what of it a plan may use."""
    return {
        "name": gpu.name,
        "usable_bytes": gpu.usable_bytes,
        "budget_bytes": max(0, gpu.usable_bytes - gpu.context_bytes),
        "context_bytes": gpu.context_bytes,
        "source": gpu.source,
    }


def caveats_document(caveats: Iterable[Caveat]) -> list[dict[str, Any]]:
    """Return every caveat once."""
    return [{"code": caveat.code, "text": caveat.text} for caveat in dict.fromkeys(caveats)]


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """Return every field of the recipe, None where it follows another field."""
    return recipe.model_dump(mode="json")


def plan_document(plan: Plan, rank: int | None = None) -> dict[str, Any]:
    """Return one plan; ``rank`` is its place among those that fit."""
    batch, time = plan.batch, plan.step_time
    document: dict[str, Any] = {} if rank is None else {"rank": rank}
    return document | {
        **batch_document(batch),
        "num_nodes": plan.num_nodes,
        "sharding": plan.recipe.sharding.value,
        "checkpointing": plan.recipe.checkpointing.value,
        "offload": plan.recipe.offload.value,
        "recipe": recipe_document(plan.recipe),
        "target_deviation": plan.target_deviation,
        "memory": memory_document(plan.memory),
        "peak": plain(plan.peak),
        "peak_bytes_without_accumulation": plan.peak_bytes_without_accumulation,
        "fits": plan.fits,
        "headroom_bytes": plan.headroom_bytes,
        "step_seconds": None
        if time is None
        else {"low": time.low, "mid": time.mid, "high": time.high, "basis": time.basis},
        "mfu": None if time is None else {"value": time.mfu, "convention": time.mfu_convention},
        "step_time_parts": None if time is None else plain(time.parts),
        "tokens_per_second": plan.tokens_per_second,
        "learning_rate": plain(plan.learning_rate),
        "caveats": caveats_document((*plan.caveats, *plan.memory.caveats)),
    }


def rescue_document(rescue: Rescue) -> dict[str, Any]:
    """Return one change, in words, by what it saves and costs, and as a priced plan."""
    return {
        "change": dict(rescue.change),
        "text": rescue.text,
        "fits": rescue.plan.fits,
        "saved_bytes": rescue.saved_bytes,
        "time_ratio": rescue.time_ratio,
        "semantics": plain(rescue.semantics),
        "plan": plan_document(rescue.plan),
    }
