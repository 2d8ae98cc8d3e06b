"""The bill: published figures, laws, and a second, dumber fold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import A100, EMPTY_PASS, toy_profile

from batchplan.errors import SpecError
from batchplan.memory import estimate, estimate_states
from batchplan.memory.activations import GradientLife, fold
from batchplan.profile import ActivationProfile
from batchplan.spec import (
    Batch,
    Checkpointing,
    Cluster,
    Method,
    Numerics,
    Offload,
    Optimizer,
    OptimizerImpl,
    Recipe,
    Sharding,
)
from batchplan.states.sharding import RULES

WORKSPACES = 2 * 8_519_680
SHARDINGS = [sharding for sharding in Sharding if sharding is not Sharding.FSDP_HYBRID]
recipes = st.builds(
    Recipe,
    numerics=st.sampled_from(Numerics),
    optimizer=st.sampled_from(Optimizer),
    optimizer_impl=st.sampled_from(OptimizerImpl),
    sharding=st.sampled_from(SHARDINGS),
    offload=st.sampled_from(Offload),
    checkpointing=st.sampled_from([Checkpointing.NONE, Checkpointing.FULL]),
    method=st.sampled_from(Method),
    sync_each_batch=st.booleans(),
)
batches = st.builds(
    Batch,
    micro_batch=st.integers(1, 16),
    accum_steps=st.integers(1, 8),
    seq_len=st.integers(1, 4096),
)


def price(recipe: Recipe, batch: Batch, *, num_ranks: int = 1, num_layers: int = 4):
    profile = toy_profile(
        num_layers=num_layers, method=recipe.method, checkpointing=recipe.checkpointing
    )
    return estimate(
        profile=profile,
        recipe=recipe,
        batch=batch.model_copy(update={"num_ranks": num_ranks}),
        cluster=Cluster(num_ranks=num_ranks),
        gpu=A100,
    )


def states(num_params: int, *, num_ranks: int = 1, **recipe: object) -> int:
    return estimate_states(
        num_params=num_params,
        recipe=Recipe.model_validate(recipe),
        cluster=Cluster(num_ranks=num_ranks),
    ).peak_bytes


# ZeRO paper, arXiv 1910.02054, figure 1: 7.5B parameters, 64 ranks, mixed-precision Adam
# (K = 12), printed in decimal GB.
@pytest.mark.parametrize(
    ("sharding", "paper_gb"), [("ddp", 120.0), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)]
)
def test_states_match_figure_1_of_the_zero_paper(sharding: str, paper_gb: float):
    found = states(7_500_000_000, num_ranks=64, sharding=sharding, numerics="bf16-master")
    assert found / 1e9 == pytest.approx(paper_gb, abs=0.05)


# QLoRA paper, arXiv 2305.14314, section 3: double quantisation takes the constants from
# 0.5 to 0.127 bits a parameter.
@pytest.mark.parametrize(("double_quant", "bits"), [(False, 4.5), (True, 4.127)])
def test_nf4_takes_the_bits_the_paper_prints(double_quant: bool, bits: float):
    recipe = Recipe(method="qlora", numerics="bf16", double_quant=double_quant)
    bill = price(recipe, Batch())
    profile = toy_profile(method=Method.QLORA)
    quantised = sum(profile.stages[i].quantisable_params for i in profile.order)
    plain = profile.frozen_params - quantised
    # The paper counts constants alone; bitsandbytes keeps look-up tables for each matrix besides.
    tables = profile.num_layers * (64 + (256 * 4 + 4) * double_quant)
    found = bill.term("frozen weights") - 2 * plain - tables
    assert found * 8 / quantised == pytest.approx(bits, abs=0.001)


# https://github.com/bitsandbytes-foundation/bitsandbytes docs: 8-bit Adam keeps 2 bytes a
# parameter where 32-bit Adam keeps 8; the blockwise constants add 4/256 bytes to each, and two
# tables of 256 fp32 values are there once.
def test_eight_bit_adam_keeps_about_a_quarter_of_the_states():
    whole = states(10**9, optimizer="adamw", numerics="fp32")
    small = states(10**9, optimizer="adamw-8bit", numerics="fp32")
    assert whole - small == 8 * 10**9 - round(2 * 10**9 * (1 + 4 / 256)) - 2048


# Published rows of fms-acceleration (HF Trainer, one A100-80GB, pure bf16, foreach AdamW): 10 bytes
# a parameter, two cuBLAS workspaces and 24 bytes a token, whatever the micro-batch.
# Mistral-7B has 7,241,732,096 parameters, Llama-3-8B 8,030,261,248.
@pytest.mark.parametrize(
    ("num_params", "micro_batch", "measured"),
    [
        (7_241_732_096, 4, 72_434_837_504),
        (7_241_732_096, 8, 72_435_230_720),
        (8_030_261_248, 4, 80_318_097_408),
    ],
)
def test_the_step_instant_matches_published_full_fine_tunes(num_params, micro_batch, measured):
    profile = _profile_of(num_params)
    found = estimate(
        profile=profile,
        recipe=Recipe(numerics="bf16", optimizer_impl="foreach"),
        batch=Batch(micro_batch=micro_batch, seq_len=4096),
        cluster=Cluster(),
        gpu=A100,
    )
    assert found.peak_phase == "optimizer step"
    assert found.allocated_peak_bytes == pytest.approx(measured, rel=3e-5)


def _profile_of(num_params: int) -> ActivationProfile:
    """A profile of nothing but parameters, so that the optimizer step is the peak."""
    toy = toy_profile(num_layers=1)
    stages = tuple(
        replace(
            stage,
            forward=EMPTY_PASS,
            backward=EMPTY_PASS,
            trainable_params=num_params if stage.is_layer else 0,
        )
        for stage in toy.stages
    )
    return replace(toy, stages=stages, buffer_bytes=0, num_params=num_params)


# Lightning's published 1.00876e9-parameter toy (docs, "FSDP"): 23,125 MiB under DDP is 24 bytes a
# parameter: 16 of states, 4 of foreach temporaries and 4 of DDP buckets.
def test_ddp_of_fp32_adamw_with_foreach_is_24_bytes_a_parameter():
    num_params = 1_008_760_000
    found = estimate(
        profile=_profile_of(num_params),
        recipe=Recipe(numerics="fp32", optimizer_impl="foreach"),
        batch=Batch(num_ranks=2, seq_len=1),
        cluster=Cluster(num_ranks=2),
        gpu=A100,
    )
    # The printed 23,125 MiB also holds workspaces and the toy's few activations.
    assert found.allocated_peak_bytes / 2**20 == pytest.approx(23_125, rel=0.003)


@given(recipes, batches, st.sampled_from([1, 2, 8]))
def test_the_terms_sum_to_the_peak_exactly(recipe: Recipe, batch: Batch, num_ranks: int):
    bill = price(recipe, batch, num_ranks=num_ranks)
    assert sum(term.num_bytes for term in bill.terms) == bill.peak_bytes
    assert bill.allocated_peak_bytes <= bill.reserved_peak_bytes <= bill.peak_bytes
    assert max(moment.num_bytes for moment in bill.timeline) == bill.allocated_peak_bytes
    assert all(term.num_bytes >= 0 for term in bill.terms)
    assert all(term.formula and term.name for term in bill.terms)


@given(recipes, batches, st.sampled_from([1, 2, 8]))
def test_more_of_anything_never_needs_less(recipe: Recipe, batch: Batch, num_ranks: int):
    base = price(recipe, batch, num_ranks=num_ranks).peak_bytes
    for change in ("micro_batch", "accum_steps", "seq_len"):
        more = batch.model_copy(update={change: getattr(batch, change) + 1})
        assert price(recipe, more, num_ranks=num_ranks).peak_bytes >= base
    assert price(recipe, batch, num_ranks=num_ranks, num_layers=5).peak_bytes >= base


@given(recipes, batches)
def test_one_rank_makes_the_zero_stage_irrelevant_to_the_states(recipe: Recipe, batch: Batch):
    names = ("weights", "frozen weights", "master weights", "optimizer states")
    stages = [Sharding.ZERO1, Sharding.ZERO2, Sharding.ZERO3]
    bills = [price(recipe.model_copy(update={"sharding": s}), batch) for s in stages]
    for bill in bills[1:]:
        assert [bill.term(n) for n in names] == [bills[0].term(n) for n in names]


@given(
    st.integers(1, 10**12),
    st.integers(1, 1024),
    st.sampled_from(Numerics),
    st.sampled_from([("ddp", "zero1"), ("zero1", "zero2"), ("zero2", "zero3")]),
)
def test_a_higher_stage_never_needs_more(num_params, num_ranks, numerics, pair):
    # DeepSpeed clones even fp32 weights for its optimizer, which DDP does not.
    assume(pair != ("ddp", "zero1") or numerics in (Numerics.BF16_MASTER, Numerics.FP16_MASTER))
    lower, higher = (
        states(num_params, num_ranks=num_ranks, numerics=numerics, sharding=s) for s in pair
    )
    assert higher <= lower


@given(st.integers(1, 10**12), st.integers(1, 1024), st.sampled_from(SHARDINGS))
def test_ranks_together_hold_at_least_one_copy(num_params, num_ranks, sharding):
    found = states(num_params, num_ranks=num_ranks, sharding=sharding, numerics="bf16-master")
    assert found * num_ranks >= 16 * num_params


def test_gradients_are_there_in_a_later_forward_but_not_in_the_first():
    """The loss instant at K = 1 holds no gradients; at K = 2 it holds all of them."""
    recipe = Recipe(numerics="bf16", checkpointing="full")
    batch = Batch(micro_batch=64, seq_len=4096)
    one, two = (price(recipe, batch.model_copy(update={"accum_steps": k})) for k in (1, 2))
    assert "head" in one.peak_phase
    gradients = 2 * toy_profile().trainable_params
    inputs = two.term("input batch") - one.term("input batch")
    extra = two.allocated_peak_bytes - one.allocated_peak_bytes - inputs
    # K = 1 has the head's own new gradient at that instant; K = 2 has all, and one in flight.
    head = 2 * 1000 * 256
    assert gradients - head <= extra <= gradients


def test_fsdp_without_sync_keeps_whole_gradients_when_accumulating():
    """accelerate's gradient_synchronization guide: Mixtral-8x7B fits at K = 1, OOM at K = 2."""
    batch = Batch(micro_batch=1, seq_len=128)

    def gradients(*, accum_steps: int, sync: bool) -> int:
        recipe = Recipe(numerics="bf16", sharding="fsdp-full", sync_each_batch=sync)
        bill = price(
            recipe,
            batch.model_copy(update={"accum_steps": accum_steps}),
            num_ranks=8,
            num_layers=32,
        )
        return bill.term("gradients")

    whole = 2 * toy_profile(num_layers=32).trainable_params
    assert gradients(accum_steps=2, sync=False) >= whole
    assert gradients(accum_steps=2, sync=True) < whole / 2
    assert gradients(accum_steps=1, sync=False) < whole / 2


def test_offload_moves_states_to_the_host_and_loses_none():
    batch = Batch(micro_batch=1, seq_len=128)
    recipe = Recipe(sharding="zero3")
    kept = price(recipe, batch, num_ranks=4)
    moved = price(recipe.model_copy(update={"offload": Offload.OPTIMIZER}), batch, num_ranks=4)
    names = ("optimizer states", "master weights")
    assert moved.host_bytes == sum(kept.term(name) for name in names)
    assert all(moved.term(name) == 0 for name in names)


@given(
    batches,
    st.integers(1, 6),
    st.sampled_from([0, 10_000]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 2.0]),
)
def test_the_fold_equals_walking_every_layer(batch, num_layers, resident, holds, root, kept):
    """A run of equal layers is looked at at its two ends only; the slow walk looks at all."""
    profile = toy_profile(num_layers=num_layers)
    life = GradientLife(
        resident_bytes=resident,
        made_bytes=2,
        kept_bytes=kept,
        holds_stage=holds,
        holds_root=root,
    )
    instants = fold(
        profile=profile, micro_batch=batch.micro_batch, seq_len=batch.seq_len, life=life
    )
    assert max(i.num_bytes for i in instants) == _walk(profile, batch, life)


def _walk(profile: ActivationProfile, batch: Batch, life: GradientLife) -> int:
    b, s = batch.micro_batch, batch.seq_len
    live, top = 0, 0
    grads = life.resident_bytes
    for index in profile.order:
        one = profile.stages[index].forward
        top = max(top, live + grads + max(p.activations(b, s) for p in one.peaks))
        live += one.delta(b, s)
    for index in reversed(profile.order):
        stage = profile.stages[index]
        for peak in stage.backward.peaks:
            made = peak.new_grad_params if life.holds_stage else peak.in_flight_grad_params
            top = max(top, live + grads + peak.activations(b, s) + 2 * made)
        live += stage.backward.delta(b, s)
        is_root = life.holds_root and not stage.is_layer
        grads += round((2 if is_root else life.kept_bytes) * stage.trainable_params)
    return top


def test_every_sharding_has_a_rule():
    assert set(RULES) == set(Sharding)


def test_states_alone_are_refused_for_adapters():
    with pytest.raises(SpecError, match="Name a MODEL instead"):
        states(10**9, method="lora")
