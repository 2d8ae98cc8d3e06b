"""The quick price against the whole bill, candidate by candidate."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import clusters, gpus, recipes, toy_profiles

from batchplan import memory
from batchplan.profile import Peak, Polynomial
from batchplan.spec import Batch

ROUNDED_AWAY = 100
"""Bytes: each term of the bill is rounded by itself."""


def with_other_peaks(profile, bytes_each, squares):
    """The profile with another stage for one sequence, and layers whose highest point changes."""

    def more(stage):
        peaks = (
            *stage.backward.peaks,
            Peak(activations=Polynomial((bytes_each, 0, 0, 0, 1, 0)), new_grad_params=0),
            Peak(activations=Polynomial((0, 0, squares, 0, 3, 0.5)), in_flight_grad_params=7),
        )
        return replace(stage, backward=replace(stage.backward, peaks=peaks))

    stages = tuple(more(stage) if stage.is_layer else stage for stage in profile.stages)
    left = replace(profile.stages[-1], left_by_last_layer=Polynomial((9, 0, 0, 5, 0, 0)))
    return replace(profile, stages=(*stages[:-1], left), single_sequence_stages=profile.stages)


@settings(max_examples=150, deadline=None)
@given(
    recipes,
    clusters,
    gpus,
    st.integers(1, 400),
    st.integers(1, 300),
    st.sampled_from([64, 1000, 4096]),
    st.integers(0, 10**9),
    st.floats(0, 40),
    st.booleans(),
)
def test_the_quick_price_is_the_bill_without_the_words(
    recipe, cluster, gpu, micro_batch, accum_steps, seq_len, bytes_each, squares, keeps_inputs
):
    profile = with_other_peaks(toy_profiles(recipe, seq_len), bytes_each, squares)
    recipe = recipe.model_copy(update={"reentrant": keeps_inputs, "fsdp_version": 1})
    setting = memory.prepare(profile=profile, recipe=recipe, cluster=cluster, gpu=gpu)
    batch = Batch(
        micro_batch=micro_batch,
        accum_steps=accum_steps,
        num_ranks=cluster.num_ranks,
        seq_len=seq_len,
    )
    whole, quick = memory.price(setting, batch), memory.QuickPrice(setting, seq_len)
    asked = (micro_batch, accum_steps)
    assert quick.allocated_bytes(*asked) == pytest.approx(
        whole.allocated_peak_bytes, abs=ROUNDED_AWAY
    )
    assert quick.peak_bytes(*asked) == pytest.approx(whole.peak_bytes, abs=ROUNDED_AWAY)
    assert quick.bound_bytes(*asked) == pytest.approx(whole.bound_bytes, abs=ROUNDED_AWAY)
