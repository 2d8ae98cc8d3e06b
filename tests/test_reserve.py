"""The played reserve: against every recorded op of the whole model, and its laws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import config_of, profile_of, run_script
from strategies import A100

from batchplan.allocator import Recording, live_peak, replay
from batchplan.memory import estimate, prepare
from batchplan.memory.device import cublas_workspace_bytes
from batchplan.memory.run import Played, play
from batchplan.memory.setting import Setting
from batchplan.profile import ActivationProfile
from batchplan.spec import Batch, Cluster, Recipe
from batchplan.tracer.recording import assemble
from batchplan.tracer.request import recording_request, trace_request
from batchplan.units import MIB

NUM_LAYERS = 10
"""Enough that what only the first and the last layer do differently stays a small part."""
MICRO_BATCH = 8
SEQ_LEN = 1000
VOCABULARY = 4096
MODELS = (
    *("01-ai/Yi-34B", "Qwen/Qwen3-0.6B", "google/gemma-3-1b-pt", "distilbert/distilgpt2"),
    *("facebook/opt-1.3b", "allenai/OLMoE-1B-7B-0924", "EleutherAI/gpt-neox-20b"),
    *("facebook/bart-base", "microsoft/Phi-3-medium-4k-instruct"),
)
RECIPES = {
    "full": Recipe(numerics="bf16"),
    "full, checkpointed": Recipe(numerics="bf16", checkpointing="full"),
    "lora": Recipe(numerics="bf16", method="lora"),
    "autocast": Recipe(numerics="bf16-autocast"),
}
PAGE_BYTES = 20 * MIB
"""A large segment of the allocator; two more or less are no error of the arithmetic."""
AT_THE_EDGES = {
    ("distilbert/distilgpt2", "full, checkpointed"),
    ("distilbert/distilgpt2", "autocast"),
    ("facebook/opt-1.3b", "full, checkpointed"),
    ("facebook/bart-base", "full, checkpointed"),
    ("microsoft/Phi-3-medium-4k-instruct", "lora"),
}
"""A stack's first and last layer keep and free other tensors than those between, whose script they
play: one or two hidden states too many or too few, which ten layers do not hide."""


def all_cases(*known: tuple[str, str]) -> list[Any]:
    off = pytest.mark.xfail(
        strict=False, reason="every layer plays the script of one in the middle"
    )
    return [
        pytest.param(model, name, marks=off if (model, name) in known else (), id=f"{model}-{name}")
        for name in RECIPES
        for model in MODELS
    ]


@dataclass(frozen=True)
class Case:
    profile: ActivationProfile
    reply: dict[str, Any]
    """The recording's sections, of two micro-batches."""

    def recording(self, accum_steps: int) -> Recording:
        """Without its section, the second micro-batch never was."""
        return assemble(
            {**self.reply, "micro_batches": self.reply["micro_batches"][:accum_steps]},
            accum_steps,
            cublas_workspace_bytes(A100) // 2,
        )


def batch_of(accum_steps: int, micro_batch: int = MICRO_BATCH) -> Batch:
    return Batch(micro_batch=micro_batch, accum_steps=accum_steps, seq_len=SEQ_LEN)


@cache
def cases(name: str) -> dict[str, Case]:
    """Every model traced and recorded, for one of ``RECIPES``."""
    recipe = RECIPES[name]
    configs = [config_of(model, NUM_LAYERS, vocabulary=VOCABULARY) for model in MODELS]
    traces = [
        trace_request(config=config, model_ref="", recipe=recipe, seq_len=SEQ_LEN)
        for config in configs
    ]
    recordings = [
        recording_request(config=config, model_ref="", recipe=recipe, batch=batch_of(2))
        for config in configs
    ]
    replies = run_script("many_traces.py", traces + recordings)
    return {
        model: Case(profile=profile_of(traced), reply=recorded["profile"])
        for model, traced, recorded in zip(
            MODELS, replies[: len(MODELS)], replies[len(MODELS) :], strict=True
        )
    }


def setting_of(case: Case, recipe: Recipe) -> Setting:
    return prepare(profile=case.profile, recipe=recipe, cluster=Cluster(), gpu=A100)


@pytest.mark.slow
@pytest.mark.xdist_group("reserve")
@pytest.mark.parametrize(("model", "name"), all_cases(*AT_THE_EDGES))
def test_a_run_played_from_stages_takes_what_its_recording_takes(model: str, name: str):
    """Every tensor of the whole model over three steps, against the stages put together."""
    case = cases(name)[model]
    for accum_steps in (1, 2):
        recording = case.recording(accum_steps)
        for expandable in (False, True):
            recipe = RECIPES[name].model_copy(update={"expandable_segments": expandable})
            ours = play(setting_of(case, recipe), batch_of(accum_steps))
            theirs = replay(recording, expandable_segments=expandable)
            assert ours is not None
            assert ours.allocated_peak_bytes == pytest.approx(theirs.allocated_peak_bytes, rel=0.01)
            assert ours.reserved_peak_bytes == pytest.approx(
                theirs.reserved_peak_bytes, rel=0.02, abs=2 * PAGE_BYTES
            )


@pytest.mark.slow
@pytest.mark.xdist_group("reserve")
@pytest.mark.parametrize(("model", "name"), all_cases())
def test_the_bill_is_the_highest_point_of_the_recording(model: str, name: str):
    """Blocks rounded to 512 bytes, without what the allocator leaves over in large ones."""
    case = cases(name)[model]
    for accum_steps in (1, 2):
        bill = estimate(
            profile=case.profile,
            recipe=RECIPES[name],
            batch=batch_of(accum_steps),
            cluster=Cluster(),
            gpu=A100,
        )
        highest = live_peak(case.recording(accum_steps)).num_bytes
        assert bill.allocated_peak_bytes == pytest.approx(highest, rel=0.01)


@pytest.mark.slow
@pytest.mark.xdist_group("reserve")
def test_a_recording_of_one_micro_batch_is_that_of_two_without_the_second():
    model = MODELS[3]
    request = recording_request(
        config=config_of(model, NUM_LAYERS, vocabulary=VOCABULARY),
        model_ref="",
        recipe=RECIPES["full"],
        batch=batch_of(1),
    )
    (reply,) = run_script("many_traces.py", [request])
    alone = assemble(reply["profile"], 1, cublas_workspace_bytes(A100) // 2)
    found = cases("full")[model].recording(1)
    assert [one.num_bytes for one in found.allocations] == [
        one.num_bytes for one in alone.allocations
    ]
    assert found.events == alone.events


# --- laws --------------------------------------------------------------------------------------


def played(recipe: Recipe, batch: Batch, capacity_bytes: int | None = None) -> Played:
    name = next(name for name, one in RECIPES.items() if one.method is recipe.method)
    case = cases(name)["Qwen/Qwen3-0.6B"]
    found = play(setting_of(case, recipe), batch, capacity_bytes=capacity_bytes)
    assert found is not None
    return found


recipes = st.builds(
    Recipe,
    numerics=st.just("bf16"),
    method=st.sampled_from(["full", "lora"]),
    optimizer=st.sampled_from(["adamw", "sgd", "sgd-momentum"]),
    optimizer_impl=st.sampled_from(["fused", "foreach"]),
    expandable_segments=st.booleans(),
)
batches = st.builds(
    Batch,
    micro_batch=st.integers(2, 12),
    accum_steps=st.integers(1, 3),
    seq_len=st.integers(520, 1024),
)


@pytest.mark.slow
@pytest.mark.xdist_group("reserve")
@settings(max_examples=15)
@given(recipe=recipes, batch=batches)
def test_reserved_is_never_below_allocated(recipe: Recipe, batch: Batch):
    found = played(recipe, batch)
    assert found.reserved_peak_bytes >= found.allocated_peak_bytes
    assert not found.ran_out
    assert found.retries_a_step == 0


@pytest.mark.slow
@pytest.mark.xdist_group("reserve")
@settings(max_examples=15)
@given(recipe=recipes, batch=batches)
def test_one_more_sequence_never_takes_less(recipe: Recipe, batch: Batch):
    more = batch.model_copy(update={"micro_batch": batch.micro_batch + 1})
    assert played(recipe, more).allocated_peak_bytes >= played(recipe, batch).allocated_peak_bytes


@pytest.mark.slow
@pytest.mark.xdist_group("reserve")
@settings(max_examples=10)
@given(recipe=recipes, batch=batches)
def test_a_limit_that_was_not_reached_changes_nothing(recipe: Recipe, batch: Batch):
    free = played(recipe, batch)
    assert played(recipe, batch, free.reserved_peak_bytes) == free


@pytest.mark.slow
@pytest.mark.xdist_group("reserve")
@settings(max_examples=10)
@given(recipe=recipes, batch=batches, share=st.floats(0.5, 0.98))
def test_less_than_the_live_tensors_runs_out(recipe: Recipe, batch: Batch, share: float):
    free = played(recipe, batch)
    limited = played(recipe, batch, round(share * free.allocated_peak_bytes))
    assert limited.ran_out
    assert not limited.runs_smoothly
    assert limited.reserved_peak_bytes <= round(share * free.allocated_peak_bytes)


@pytest.mark.slow
@pytest.mark.xdist_group("reserve")
@settings(max_examples=15)
@given(recipe=recipes, batch=batches)
def test_expandable_segments_hold_little_more_than_fixed_ones_at_most(recipe: Recipe, batch: Batch):
    """Mostly less: no fragment is lost. A page of 20 MiB a pool may be begun in vain."""
    fixed, expandable = (
        played(recipe.model_copy(update={"expandable_segments": on}), batch) for on in (False, True)
    )
    assert expandable.reserved_peak_bytes <= fixed.reserved_peak_bytes + 2 * PAGE_BYTES
