"""A recording of fake tensors against real training on the CPU, allocation for allocation."""

from __future__ import annotations

from itertools import accumulate, groupby
from typing import Any

import pytest
from small_models import run_script

from batchplan.allocator import Recording
from batchplan.spec import Batch, Recipe
from batchplan.tracer.recording import STEPS, assemble
from batchplan.tracer.request import recording_request

COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
TINY = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 96},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4},
    "gemma2": {"num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 16},
}
RECIPES = {
    "adamw": {"optimizer_impl": "fused"},
    "adamw foreach": {"optimizer_impl": "foreach", "checkpointing": "full"},
    "adamw for-loop": {"optimizer_impl": "for-loop"},
    "sgd": {"optimizer": "sgd", "optimizer_impl": "foreach"},
    "sgd fused": {"optimizer": "sgd", "checkpointing": "full"},
    "momentum": {"optimizer": "sgd-momentum", "optimizer_impl": "foreach"},
    "momentum fused": {"optimizer": "sgd-momentum"},
    "bf16": {"numerics": "bf16", "optimizer_impl": "foreach"},
    "autocast": {"numerics": "bf16-autocast", "checkpointing": "full"},
    "lora": {"method": "lora", "optimizer_impl": "foreach"},
    "reentrant lora": {"method": "lora", "checkpointing": "full", "reentrant": True},
}
CASES = [(kind, name) for kind in TINY for name in RECIPES]
BATCH = Batch(micro_batch=2, accum_steps=2, seq_len=64)


def trained_and_recorded(
    cases: list[tuple[str, str]], *, tied: bool
) -> dict[tuple[str, str], tuple[list[int], list[int]]]:
    """Bytes made and freed, signed and in order, by real training and by the recording."""
    requests = [
        recording_request(
            config={"model_type": kind, "tie_word_embeddings": tied, **COMMON, **TINY[kind]},
            model_ref="",
            recipe=Recipe(**({"numerics": "fp32", "attention": "eager"} | RECIPES[name])),
            batch=BATCH,
        )
        for kind, name in cases
    ]
    found = {}
    for case, (real, reply) in zip(cases, run_script("real_tensors.py", requests), strict=True):
        recording = assemble(reply, BATCH.accum_steps, workspace_bytes=0)
        found[case] = (real, signed_bytes(recording))
    return found


def signed_bytes(recording: Recording) -> list[int]:
    sizes = [one.num_bytes for one in recording.allocations]
    return [
        sizes[event] if event >= 0 else -sizes[~event]
        for event in recording.events
        if recording.allocations[max(event, ~event)].kind != "workspace"
    ]


def in_order_of_size(events: list[int]) -> list[int]:
    """The frees between two allocations sorted."""
    runs = (list(run) for _, run in groupby(events, lambda num_bytes: num_bytes > 0))
    return [one for run in runs for one in (run if run[0] > 0 else sorted(run))]


@pytest.fixture(scope="module")
def untied() -> dict[Any, tuple[list[int], list[int]]]:
    return trained_and_recorded(CASES, tied=False)


@pytest.mark.slow
@pytest.mark.xdist_group("real")
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_real_training_allocates_and_frees_what_was_recorded(case, untied):
    """Three optimizer steps of two micro-batches: every tensor, in the same order."""
    real, recorded = untied[case]
    assert len(real) > 100 * STEPS
    if "autocast" in case[1]:
        # Cast weights die together, in the order of a hash table of addresses.
        real, recorded = in_order_of_size(real), in_order_of_size(recorded)
    assert recorded == real


@pytest.mark.slow
@pytest.mark.xdist_group("real")
def test_tied_embeddings_are_off_by_one_gradient_table_at_most():
    """autograd adds the two gradients in place, but not when a tensor is a subclass (fake)."""
    cases = [(kind, name) for kind in TINY for name in ("adamw", "adamw foreach")]
    table = 4 * COMMON["vocab_size"] * COMMON["hidden_size"]
    for case, (real, recorded) in trained_and_recorded(cases, tied=True).items():
        highest_real, highest_recorded = max(accumulate(real)), max(accumulate(recorded))
        assert abs(highest_recorded - highest_real) <= table, case
        assert sum(recorded) == sum(real), case
