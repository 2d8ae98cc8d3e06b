"""What would make a plan fit, smaller or faster: against dumb enumeration, laws and lessons."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from time import process_time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from planning import FakePricer, bill
from strategies import A100, H100, TOY_MODEL, toy_profile, toy_profiles

import batchplan
from batchplan.errors import TraceError
from batchplan.memory import Estimate, estimate
from batchplan.planner import ProfilePricer, SearchSpace, StatesPricer
from batchplan.planner.assemble import Question, assemble
from batchplan.planner.candidates import Layout
from batchplan.planner.explain import explain_peak
from batchplan.planner.rescue import ladder, rescues, savings, sets, speedups
from batchplan.planner.rescue.attempt import begin
from batchplan.planner.rescue.changes import changes_for
from batchplan.spec import (
    Attention,
    Batch,
    BatchGoal,
    Checkpointing,
    Cluster,
    Gpu,
    Loss,
    Method,
    ModelInfo,
    Offload,
    Optimizer,
    OptimizerImpl,
    Recipe,
    Sharding,
)
from batchplan.throughput import step_time
from batchplan.trainers import obstacles

SPLIT = {Sharding.DDP: 0, Sharding.ZERO1: 2, Sharding.ZERO2: 3}
HOST = {Offload.NONE: 1, Offload.OPTIMIZER: 2, Offload.PARAMS: 6}
ADAPTED = {Method.FULL: 1, Method.LORA: 4, Method.QLORA: 12}
KEPT = {Checkpointing.NONE: 10, Checkpointing.SELECTIVE: 6, Checkpointing.FULL: 2}
LOGITS = {Loss.STANDARD: 6, Loss.CHUNKED: 3, Loss.FUSED: 1}


@dataclass
class ToyPricer(FakePricer):
    """Made-up memory in which every change counts."""

    confirmed: list[Recipe] = field(default_factory=list)

    def num_bytes(self, recipe: Recipe, batch: Batch, cluster: Cluster) -> int:
        splits = SPLIT.get(recipe.sharding, 4)
        states = self.states * (4 - splits) / 4 + self.states * splits / 4 / cluster.num_ranks
        states /= HOST[recipe.offload] * ADAPTED[recipe.method]
        if recipe.optimizer is Optimizer.ADAMW_8BIT:
            states *= 0.7
        if recipe.optimizer_impl is OptimizerImpl.FOREACH:
            states *= 1.2
        if batch.accum_steps > 1:
            states *= 1.1
        kept = KEPT[recipe.checkpointing] + LOGITS[recipe.loss]
        kept += 9 if recipe.attention is Attention.EAGER else 0
        kept *= self.per_sequence * batch.micro_batch * batch.seq_len / 10240
        return round(1000 * (states + kept))

    def confirm(self, *, recipe: Recipe, batch: Batch, cluster: Cluster) -> Estimate:
        self.confirmed.append(recipe)
        num_bytes = self.num_bytes(recipe, batch, cluster)
        missed = 0 if recipe.expandable_segments else self.missed_percent
        return bill(num_bytes * (100 + missed) // 100)


def asked(pricer, *, budget=10**6, gpu=A100, goal=None, **fields) -> Question:
    return Question(
        pricer=pricer,
        goal=goal or BatchGoal(),
        gpu=gpu.model_copy(update={"usable_bytes": budget}),
        model=TOY_MODEL,
        **fields,
    )


def space_of(batch: Batch, **fields) -> SearchSpace:
    return SearchSpace(num_ranks=(batch.num_ranks,), seq_len=batch.seq_len, **fields)


def plan_of(question, recipe, batch, cluster=None):
    layout = Layout(recipe=recipe, cluster=cluster or Cluster(num_ranks=batch.num_ranks))
    return assemble(question=question, layout=layout, batch=batch)


def run(function, pricer, *, recipe=None, batch=None, budget=10**6, space=None, **fields):
    batch = batch or Batch(micro_batch=8, num_ranks=2, seq_len=1024)
    fields = {"goal": BatchGoal(target_tokens=batch.global_batch_tokens)} | fields
    question = asked(pricer, budget=budget, **fields)
    start = plan_of(question, recipe or Recipe(sharding=Sharding.ZERO2), batch)
    traced = {"checkpointings": (start.recipe.checkpointing,)}
    return function(
        question=question, space=space_of(batch, **(traced | (space or {}))), start=start
    ), start


# --- sets that fit -------------------------------------------------------------------------------

STRENGTHS = {
    "checkpointing": ["none", "selective", "full"],
    "loss": ["standard", "chunked", "fused"],
    "micro-batch": ["8", "1"],
    "sharding": ["zero2", "zero3"],
    "offload": ["none", "optimizer", "params"],
    "optimizer": ["adamw", "adamw-8bit"],
    "seq-len": ["1024", "512"],
    "method": ["full", "lora", "qlora"],
    "devices": ["2", "4", "8", "16"],
}
"""What a plan with zero2, a micro-batch of 8 and 1,024 tokens on two devices can change."""


def dumb_price(pricer: ToyPricer, options: dict[str, str]) -> int | None:
    """Price a choice of options from scratch; None where DeepSpeed has no such thing."""
    now = {knob: values[0] for knob, values in STRENGTHS.items()} | options
    if now["offload"] != "none" and now["optimizer"] != "adamw":
        return None
    if now["offload"] == "params" and now["sharding"] != "zero3":
        return None
    recipe = Recipe(
        checkpointing=now["checkpointing"],
        loss=now["loss"],
        sharding=now["sharding"],
        offload=now["offload"],
        optimizer=now["optimizer"],
        method=now["method"],
    )
    ranks, seq_len, micro_batch = (int(now[k]) for k in ("devices", "seq-len", "micro-batch"))
    tokens = 16 * 1024
    accum_steps, rest = divmod(tokens, ranks * seq_len * micro_batch)
    if rest or not accum_steps:
        return None
    batch = Batch(
        micro_batch=micro_batch, accum_steps=accum_steps, num_ranks=ranks, seq_len=seq_len
    )
    return pricer.num_bytes(recipe, batch, Cluster(num_ranks=ranks))


def is_minimal(pricer: ToyPricer, budget: int, options: dict[str, str]) -> bool:
    """Whether it fits, and would not with any of it left out or any weaker."""

    def fits(options: dict[str, str]) -> bool:
        price = dumb_price(pricer, options)
        return price is not None and price <= budget

    return fits(options) and not any(
        fits(options | {knob: weaker})
        for knob, value in options.items()
        for weaker in STRENGTHS[knob][: STRENGTHS[knob].index(value)]
    )


def dumb_rescues(pricer: ToyPricer, budget: int) -> list[dict[str, str]]:
    """Every minimal set of at most two options."""
    single = [(knob, value) for knob, values in STRENGTHS.items() for value in values[1:]]
    chosen = [dict(options) for size in (1, 2) for options in combinations(single, size)]
    distinct = {frozenset(options.items()) for options in chosen}
    return [dict(each) for each in distinct if is_minimal(pricer, budget, dict(each))]


@settings(max_examples=40, deadline=None)
@given(st.integers(60, 420), st.integers(2, 30))
def test_rescues_equal_dumb_enumeration(kilobytes, per_sequence):
    pricer = ToyPricer(per_sequence=per_sequence)
    budget = 1000 * kilobytes
    assume(dumb_price(pricer, {}) > budget)
    expected = dumb_rescues(pricer, budget)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MOST_RESCUES", "ENOUGH", "MOST_TRACES"):
            patch.setattr(sets, name, 10**6)
        offers, _ = run(rescues, pricer, budget=budget)
    found = [
        {knob: value for knob, value in offer.change.items() if knob in STRENGTHS}
        for offer in offers
    ]
    assert all(is_minimal(pricer, budget, options) for options in found)
    small = [options for options in found if len(options) <= 2]
    assert sorted(map(str, map(sorted, map(dict.items, small)))) == sorted(
        map(str, map(sorted, map(dict.items, expected)))
    )
    assert [len(options) for options in found] == sorted(map(len, found))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(20, 420),
    st.integers(2, 60),
    st.integers(0, 10),
    st.sampled_from([Sharding.ZERO1, Sharding.ZERO2, Sharding.FSDP_GRAD_OP]),
)
def test_every_offer_is_confirmed_and_says_what_it_does(kilobytes, per_sequence, missed, sharding):
    pricer = ToyPricer(per_sequence=per_sequence, missed_percent=missed)
    recipe = Recipe(
        sharding=sharding, attention=Attention.EAGER, optimizer_impl=OptimizerImpl.FOREACH
    )
    offers, start = run(rescues, pricer, recipe=recipe, budget=1000 * kilobytes)
    assume(not start.fits)
    assert len(offers) <= sets.MOST_RESCUES
    assert len({frozenset(offer.change.items()) for offer in offers}) == len(offers)
    for offer in offers:
        plan = offer.plan
        assert plan.fits
        assert plan.memory.bound_bytes <= 1000 * kilobytes
        assert plan.batch.global_batch_tokens == start.batch.global_batch_tokens
        assert offer.saved_bytes == start.memory.peak_bytes - plan.memory.peak_bytes > 0
        seconds = [each.step_time.mid / each.batch.global_batch_tokens for each in (plan, start)]
        assert offer.time_ratio == pytest.approx(seconds[0] / seconds[1])
        words = set(offer.semantics)
        assert ("fewer parameters" in words) == ("method" in offer.change)
        assert ("shorter context" in words) == ("seq-len" in offer.change)
        assert ("different optimizer" in words) == ("optimizer" in offer.change)
        for name, value in offer.change.items():
            written = {"yes": f"--{name}", "no": f"--no-{name}"}.get(value, f"--{name} {value}")
            assert written in offer.text


def test_only_what_is_offered_is_played_and_what_fails():
    pricer = ToyPricer(missed_percent=5)
    offers, _ = run(rescues, pricer, budget=300_000)
    failed = [
        recipe for recipe in pricer.confirmed if recipe not in [each.plan.recipe for each in offers]
    ]
    assert offers
    assert len(pricer.confirmed) <= len(offers) + len(failed) + 1  # the start
    assert len(failed) <= 5


def test_what_only_the_quick_price_lets_in_is_never_offered():
    pricer = ToyPricer(states=400, missed_percent=30)
    budget = 300_000
    offers, _ = run(rescues, pricer, budget=budget)
    everything = ToyPricer(states=400)
    optimistic, _ = run(rescues, everything, budget=budget)
    assert all(offer.plan.memory.bound_bytes <= budget for offer in offers)
    assert {str(each.change) for each in offers} != {str(each.change) for each in optimistic}


def test_an_allocator_that_grows_its_segments_is_the_least_of_changes():
    pricer = ToyPricer(states=100, missed_percent=20)
    price = pricer.num_bytes(
        Recipe(sharding=Sharding.ZERO2),
        Batch(micro_batch=8, num_ranks=2, seq_len=1024),
        Cluster(num_ranks=2),
    )
    offers, _ = run(rescues, pricer, budget=price + 100)
    assert offers[0].change == {"expandable-segments": "yes"}
    assert offers[0].text.startswith("--expandable-segments:")
    assert offers[0].semantics == ("same",)
    assert offers[0].time_ratio == 1


def test_nothing_that_is_already_on_is_offered():
    recipe = Recipe(
        sharding=Sharding.ZERO3,
        checkpointing=Checkpointing.FULL,
        offload=Offload.PARAMS,
        loss=Loss.FUSED,
        expandable_segments=True,
    )
    batch = Batch(micro_batch=1, accum_steps=4, num_ranks=2, seq_len=1024)
    for function in (rescues, ladder):
        offers, start = run(function, ToyPricer(), recipe=recipe, batch=batch, budget=10_000)
        assert not start.fits
        for offer in offers:
            assert not set(offer.change) - {"method", "seq-len", "devices", "nodes", "accum-steps"}


def test_attention_is_offered_only_to_those_who_run_it_eagerly():
    pricer = ToyPricer(states=60, per_sequence=60)
    eager = Recipe(sharding=Sharding.ZERO2, attention=Attention.EAGER)
    offers, _ = run(rescues, pricer, recipe=eager, budget=820_000)
    assert {"attention": "sdpa"} in [offer.change for offer in offers]
    offers, _ = run(rescues, pricer, budget=500_000)
    assert offers
    assert not any("attention" in offer.change for offer in offers)


def test_methods_that_cannot_be_traced_are_left_out_and_the_start_s_trouble_is_not(monkeypatch):
    monkeypatch.setattr(sets, "MOST_TRACES", 10**6)
    pricer = ToyPricer(untraceable=frozenset({Method.LORA, Method.QLORA}))
    offers, _ = run(rescues, pricer, budget=12_000)
    tried = [recipe.method for recipe in pricer.asked if recipe.method is not Method.FULL]
    assert tried == [Method.LORA, Method.QLORA]  # once is enough to know
    assert not any("method" in offer.change for offer in offers)
    with pytest.raises(TraceError, match="full cannot be traced"):
        run(rescues, ToyPricer(untraceable=frozenset({Method.FULL})), budget=50_000)


def test_when_nothing_helps_nothing_is_offered():
    assert run(rescues, ToyPricer(), budget=10)[0] == ()
    assert not any(rung.plan.fits for rung in run(ladder, ToyPricer(), budget=10)[0])


def test_more_devices_than_a_node_holds_come_with_more_nodes():
    recipe = Recipe(sharding=Sharding.ZERO3, checkpointing=Checkpointing.FULL)
    batch = Batch(micro_batch=1, accum_steps=8, num_ranks=8, seq_len=1024)
    offers, _ = run(rescues, ToyPricer(), recipe=recipe, batch=batch, budget=75_000)
    (offer,) = [each for each in offers if "nodes" in each.change and len(each.change) == 2]
    assert offer.change == {"devices": "16", "nodes": "2"}
    assert (offer.plan.batch.num_ranks, offer.plan.num_nodes) == (16, 2)
    assert offer.plan.batch.accum_steps == 4
    assert offer.time_ratio < 1


def test_without_a_target_more_devices_do_more_and_the_micro_batch_still_keeps_the_batch():
    recipe = Recipe(sharding=Sharding.ZERO3, checkpointing=Checkpointing.FULL)
    pricer, batch = ToyPricer(per_sequence=20), Batch(micro_batch=2, num_ranks=2, seq_len=1024)
    offers, _ = run(rescues, pricer, recipe=recipe, batch=batch, budget=185_000, goal=BatchGoal())
    (devices,) = [each for each in offers if set(each.change) == {"devices"}]
    assert devices.change == {"devices": "4"}
    assert (devices.plan.batch.micro_batch, devices.plan.batch.accum_steps) == (2, 1)
    for offer in offers:
        if "micro-batch" in offer.change:
            batch = offer.plan.batch
            assert batch.global_batch_tokens == 2 * 1024 * batch.num_ranks


def test_changes_that_reach_over_nodes_are_timed_at_the_given_rate():
    recipe = Recipe(sharding=Sharding.ZERO3, checkpointing=Checkpointing.FULL)
    batch = Batch(micro_batch=1, num_ranks=8, seq_len=1024)

    def ratio(rate: float | None) -> float:
        offers, _ = run(
            rescues,
            ToyPricer(),
            recipe=recipe,
            batch=batch,
            budget=75_000,
            goal=BatchGoal(target_sequences=16),
            space={"inter_node_gb_per_s": rate},
        )
        return next(each.time_ratio for each in offers if each.change.get("nodes") == "2")

    assert ratio(None) == ratio(25.0) < ratio(1.0)


def test_a_smaller_micro_batch_keeps_the_global_batch_and_names_a_pinned_k():
    pricer = ToyPricer(states=500, per_sequence=100)
    recipe = Recipe(checkpointing=Checkpointing.FULL, loss=Loss.FUSED)
    batch = Batch(micro_batch=8, num_ranks=1, seq_len=1024)
    for pinned in ({}, {"accum_steps": 1}):
        offers, _ = run(rescues, pricer, recipe=recipe, batch=batch, budget=600_000, space=pinned)
        assert offers[0].change == {"micro-batch": "1", "accum-steps": "8"}
        assert offers[0].plan.batch.global_batch_size == 8


def test_a_larger_device_is_the_last_resort():
    small = asked(ToyPricer(), budget=200_000)
    larger = tuple(
        asked(ToyPricer(), budget=budget, gpu=A100.model_copy(update={"name": name}))
        for name, budget in (("middle", 400_000), ("large", 510_000), ("huge", 10**6))
    )
    batch = Batch(micro_batch=8, num_ranks=2, seq_len=1024)
    recipe = Recipe(sharding=Sharding.ZERO2)
    start = plan_of(small, recipe, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "MOST_RESCUES", 100)
        offers = rescues(question=replace(small, larger=larger), space=space_of(batch), start=start)
    single = [offer for offer in offers if len(offer.change) == 1]
    assert single[-1].change == {"gpu": "large"}  # the start needs 503 kB
    assert single[-1].plan.usable_bytes == 510_000
    assert not any(offer.change.get("gpu") == "huge" for offer in offers)


def test_offers_are_what_the_trainer_can_run():
    def hf(recipe: Recipe, num_ranks: int) -> tuple[str, ...]:
        return obstacles("hf-trainer", recipe, num_ranks=num_ranks)

    recipe = Recipe(sharding=Sharding.ZERO1)
    batch = Batch(micro_batch=1, num_ranks=1, seq_len=1024)
    offers, start = run(
        rescues,
        ToyPricer(per_sequence=100),
        recipe=recipe,
        batch=batch,
        budget=220_000,
        obstacles=hf,
    )
    assert not hf(start.recipe, 1)
    assert offers
    assert not any(hf(offer.plan.recipe, offer.plan.batch.num_ranks) for offer in offers)
    (qlora,) = [each for each in offers if each.change.get("method") == "qlora"]
    assert qlora.change == {"method": "qlora", "numerics": "bf16", "sharding": "ddp"}


def test_what_nobody_gave_follows_without_a_word():
    def hf(recipe: Recipe, num_ranks: int) -> tuple[str, ...]:
        return obstacles("hf-trainer", recipe, num_ranks=num_ranks)

    batch = Batch(micro_batch=1, num_ranks=8, seq_len=1024)
    recipe = Recipe(sharding=Sharding.DDP, numerics="bf16-autocast")
    told = {frozenset(): {"numerics": "bf16-master"}, frozenset({"numerics"}): {}}
    for assumed, numerics in told.items():
        offers, _ = run(
            rescues,
            ToyPricer(per_sequence=1),
            recipe=recipe,
            batch=batch,
            budget=400_000,
            obstacles=hf,
            assumed=assumed,
        )
        # DeepSpeed always keeps fp32 copies, so autocast over fp32 weights gives way to them.
        (offer,) = [each for each in offers if each.change.get("sharding") == "zero1"]
        assert offer.change == {"sharding": "zero1"} | numerics
        assert offer.plan.recipe.numerics == "bf16-master"


@pytest.mark.parametrize(
    "asked",
    [
        {"gpu": "a100-40gb", "micro_batch": 4},
        {"gpu": "a100-40gb", "micro_batch": 1, "loss": "chunked", "optimizer_impl": "foreach"},
        {"gpu": "rtx-4090", "devices": 4, "sharding": "zero2", "target_tokens": "64k"},
        {"gpu": "v100-32gb", "devices": 8, "sharding": "fsdp-grad-op", "accum_steps": 4},
        {"gpu": "a100-80gb", "devices": 2, "sharding": "ddp", "checkpointing": "none"},
    ],
)
def test_an_offer_that_is_typed_in_really_fits(monkeypatch, asked):
    """The options are handed to ``recommend`` beside the question, as a user would."""

    def profile(*, recipe, seq_len, **_):
        shape = {"num_layers": 40, "hidden_size": 5120, "vocabulary": 32_000}
        return toy_profile(**shape, method=recipe.method, checkpointing=recipe.checkpointing)

    monkeypatch.setattr("batchplan.api.profiles.activation_profile", profile)
    asked = {"seq_len": 2048} | asked
    answer = batchplan.recommend("llama-2-13b", **asked)
    assert not answer.fits
    assert answer.found.rescues
    for offer in answer.found.rescues:
        typed = {
            name.replace("-", "_"): {"yes": True, "no": False}.get(value, value)
            for name, value in offer.change.items()
        }
        for name in typed.keys() & {"seq_len", "nodes"}:
            typed[name] = int(typed[name])
        again = batchplan.recommend("llama-2-13b", **(asked | typed))
        assert again.fits, offer.text


class Counted:
    """A profile source that knows what it was asked for."""

    def __init__(self, **shape) -> None:
        self.shape = shape
        self.keys: set[tuple[object, ...]] = set()

    def __call__(self, recipe: Recipe, seq_len: int):
        self.keys.add((recipe.method, recipe.checkpointing, recipe.loss, seq_len))
        return toy_profile(**self.shape, method=recipe.method, checkpointing=recipe.checkpointing)


def test_no_activation_is_traced_for_where_the_optimizer_alone_is_too_much():
    source = Counted(num_layers=12, hidden_size=1024, vocabulary=2000)
    gpu = A100.model_copy(update={"usable_bytes": 2 * 2**30})
    pricer = ProfilePricer(profiles=source, gpu=gpu)
    batch = Batch(micro_batch=1, seq_len=256)
    offers, start = run(
        rescues,
        pricer,
        recipe=Recipe(sharding=Sharding.ZERO1, optimizer_impl=OptimizerImpl.FOREACH),
        batch=batch,
        gpu=gpu,
        budget=gpu.usable_bytes,
    )
    assert start.memory.peak_phase == "optimizer step"
    assert offers
    assert {key[1:] for key in source.keys if key[0] is Method.FULL} == {
        (Checkpointing.NONE, Loss.STANDARD, 256)
    }


def test_few_traces_are_asked_for_even_when_nothing_fits():
    source = Counted(num_layers=12, hidden_size=1024)
    gpu = A100.model_copy(update={"usable_bytes": 2**29})
    pricer = ProfilePricer(profiles=source, gpu=gpu)
    offers, _ = run(
        rescues,
        pricer,
        batch=Batch(micro_batch=64, num_ranks=1, seq_len=8192),
        gpu=gpu,
        budget=2**29,
    )
    assert not offers
    assert len(source.keys) <= 1 + sets.MOST_TRACES


# --- the lessons' ladders ------------------------------------------------------------------------


def lesson(billions: int, gigabytes: int, ranks: int, sharding: str, activations: int = 0):
    """Fp16 weights, fp32 gradients and moments, no master copies, in decimal gigabytes."""
    question = Question(
        pricer=StatesPricer(num_params=billions * 10**9, activation_bytes=activations * 10**9),
        goal=BatchGoal(),
        gpu=Gpu(name=f"{gigabytes} GB", usable_bytes=gigabytes * 10**9),
        model=ModelInfo(id="lesson", architecture="parameters only", source="--params"),
    )
    recipe = Recipe(
        weight_dtype="fp16",
        grad_dtype="fp32",
        optimizer_dtype="fp32",
        master_weights=False,
        sharding=sharding,
    )
    batch = Batch(num_ranks=ranks, seq_len=2048)
    return {
        "question": question,
        "space": space_of(batch),
        "start": plan_of(question, recipe, batch),
    }


def test_7b_on_eight_80_gb_cards_needs_zero_1_and_51_gb():
    asked = lesson(7, 80, 8, "ddp", activations=2)
    assert asked["start"].memory.peak_bytes == 100 * 10**9
    (rung,) = ladder(**asked)
    least = rescues(**asked)[0]
    for offer in (rung, least):
        assert offer.change == {"sharding": "zero1"}
        assert offer.plan.memory.peak_bytes == 51 * 10**9
        assert offer.saved_bytes == 49 * 10**9
        assert offer.plan.fits


def test_13b_on_four_40_gb_cards_needs_zero_3_then_offload():
    asked = lesson(13, 40, 4, "zero2")
    rungs = ladder(**asked)
    assert [(rung.change, rung.plan.memory.peak_bytes / 1e9) for rung in rungs] == [
        ({"sharding": "zero3"}, 45.5),
        ({"offload": "optimizer"}, 19.5),
    ]
    assert [rung.plan.fits for rung in rungs] == [False, True]
    assert [rung.saved_bytes / 1e9 for rung in rungs] == [19.5, 45.5]


def test_eight_bit_moments_save_the_published_three_quarters():
    """8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861: 2 bytes a value of 8."""
    asked = lesson(7, 60, 1, "ddp")
    (offer,) = [each for each in rescues(**asked) if each.change == {"optimizer": "adamw-8bit"}]
    assert offer.saved_bytes == pytest.approx(0.75 * 56e9, rel=0.02)
    assert offer.semantics == ("different optimizer",)


def test_the_ladder_falls_at_every_rung_and_only_its_last_fits():
    recipe = Recipe(sharding=Sharding.DDP)
    batch = Batch(micro_batch=4, num_ranks=1, seq_len=1024)
    rungs, start = run(ladder, ToyPricer(), recipe=recipe, batch=batch, budget=90_000)
    peaks = [start.memory.peak_bytes, *(rung.plan.memory.peak_bytes for rung in rungs)]
    assert all(later < earlier for earlier, later in pairwise(peaks))
    assert [rung.plan.fits for rung in rungs] == [False] * (len(rungs) - 1) + [True]
    assert [rung.saved_bytes for rung in rungs] == [start.memory.peak_bytes - p for p in peaks[1:]]


class OptimizerBound(ToyPricer):
    """The step's optimizer peak hides what checkpointing saves, until it is offloaded."""

    def num_bytes(self, recipe: Recipe, batch: Batch, cluster: Cluster) -> int:
        kept = 30_000 if recipe.checkpointing is Checkpointing.FULL else 50_000
        kept = round(kept * batch.seq_len / 1024)
        in_step = {Offload.NONE: 200_000, Offload.OPTIMIZER: 10_000, Offload.PARAMS: 0}
        resident = 0 if recipe.offload is Offload.PARAMS else 20_000
        return resident + max(kept, in_step[recipe.offload])


def test_the_ladder_recomputes_once_it_helps_and_leaves_the_data_alone():
    rungs, _ = run(
        ladder, OptimizerBound(), batch=Batch(micro_batch=1, seq_len=1024), budget=31_000
    )
    # Before the optimizer is away, recomputation lowers nothing and is no rung.
    assert [rung.change for rung in rungs] == [
        {"offload": "optimizer"},
        {"checkpointing": "full"},
        {"sharding": "zero3", "offload": "params"},
    ]
    assert rungs[-1].plan.fits


# --- of a plan that fits -------------------------------------------------------------------------


def test_what_would_make_a_plan_smaller_is_really_smaller():
    offers, start = run(rescues, ToyPricer(per_sequence=60), budget=2 * 10**6)
    assert start.fits
    assert offers
    assert [offer.change for offer in offers][:2] == [
        {"checkpointing": "selective"},
        {"checkpointing": "full"},
    ]
    for offer in offers:
        assert offer.plan.fits
        assert offer.saved_bytes > 0.03 * start.memory.peak_bytes
    again, _ = run(savings, ToyPricer(per_sequence=60), budget=2 * 10**6)
    assert again == offers


@pytest.mark.parametrize(
    ("method", "said"),
    [(Method.FULL, "fewer parameters"), (Method.LORA, "frozen weights in other bits")],
)
def test_a_4_bit_base_trains_fewer_parameters_only_than_a_full_fine_tune(method, said):
    def to_qlora(*, question, space, start):
        here = begin(question=question, space=space, start=start)
        applied = [(change, change.apply(here)) for change in changes_for(question)]
        return [
            change.semantics.value
            for change, attempt in applied
            if attempt is not None and attempt.recipe.method is Method.QLORA
        ]

    found, _ = run(to_qlora, ToyPricer(), recipe=Recipe(method=method))
    assert found == [said]


def fast(recipe: Recipe, *, micro_batch=1, accum_steps=8, ranks=1, function=speedups, **fields):
    shape = {"num_layers": 8, "hidden_size": 1024, "vocabulary": 8000}
    gpu = fields.pop("gpu", H100)

    def source(recipe: Recipe, seq_len: int):
        return toy_profile(**shape, method=recipe.method, checkpointing=recipe.checkpointing)

    pricer = ProfilePricer(profiles=source, gpu=gpu)
    batch = Batch(micro_batch=micro_batch, accum_steps=accum_steps, num_ranks=ranks, seq_len=2048)
    space = {"checkpointings": (Checkpointing.NONE, Checkpointing.FULL)}
    return run(
        function,
        pricer,
        recipe=recipe,
        batch=batch,
        gpu=gpu,
        budget=gpu.usable_bytes,
        space=space,
        **fields,
    )


def test_a_plan_that_recomputes_for_nothing_is_told_to_stop():
    offers, start = fast(
        Recipe(sharding=Sharding.ZERO1, checkpointing=Checkpointing.FULL), micro_batch=8
    )
    (offer,) = [each for each in offers if "checkpointing" in each.change]
    assert offer.change["checkpointing"] == "none"
    assert offer.saved_bytes < 0  # it costs memory
    # One forward in four is repeated at most: no recomputation is 3/4 of the time at least.
    assert 0.74 < offer.time_ratio < 0.97
    assert offer.plan.fits
    assert start.fits


@pytest.mark.parametrize(
    ("checkpointing", "gibibytes", "micro_batch", "knob"),
    [("full", 9, 2, "checkpointing"), ("none", 40, 1, "micro-batch")],
)
def test_a_speed_up_runs_at_the_micro_batch_that_trying_all_finds(
    checkpointing, gibibytes, micro_batch, knob
):
    gpu = A100.model_copy(update={"usable_bytes": gibibytes * 2**30, "link_gb_per_s": None})
    recipe = Recipe(sharding=Sharding.FSDP_FULL, checkpointing=checkpointing)
    offers, start = fast(
        recipe, micro_batch=micro_batch, accum_steps=48 // micro_batch, ranks=2, gpu=gpu
    )
    (offer,) = [each for each in offers if next(iter(each.change)) == knob]
    profile = toy_profile(num_layers=8, hidden_size=1024, vocabulary=8000)
    setting = {"recipe": Recipe(sharding=Sharding.FSDP_FULL), "cluster": Cluster(num_ranks=2)}
    seconds = []
    for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 48):
        batch = Batch(micro_batch=size, accum_steps=48 // size, num_ranks=2, seq_len=2048)
        given = {"profile": profile, "gpu": gpu, "batch": batch, **setting}
        if estimate(**given).bound_bytes <= gpu.usable_bytes:
            seconds.append(step_time(**given).mid)
    assert 0 < len(seconds) < 10  # some fit, and some do not
    assert offer.plan.step_time.mid == pytest.approx(min(seconds))
    assert offer.time_ratio == pytest.approx(min(seconds) / start.step_time.mid)


@pytest.mark.parametrize(
    ("recipe", "ranks"),
    [
        (Recipe(sharding=Sharding.ZERO1, checkpointing=Checkpointing.FULL), 1),
        (Recipe(sharding=Sharding.ZERO3, offload=Offload.PARAMS), 4),
        (Recipe(sharding=Sharding.FSDP_FULL), 4),
    ],
)
def test_every_speed_up_fits_is_faster_and_keeps_the_batch(recipe, ranks):
    offers, start = fast(recipe, ranks=ranks)
    assert offers
    ratios = [offer.time_ratio for offer in offers]
    assert ratios == sorted(ratios)
    for offer in offers:
        assert offer.change
        assert offer.plan.fits
        assert offer.plan.batch.global_batch_tokens == start.batch.global_batch_tokens
        before, after = (plan.tokens_per_second for plan in (start, offer.plan))
        assert offer.time_ratio == pytest.approx(before / after)
        assert after > 1.03 * before


def test_no_change_takes_the_credit_of_the_micro_batch_that_comes_with_it():
    gpu = A100.model_copy(update={"usable_bytes": 40 * 2**30, "link_gb_per_s": None})
    recipe = Recipe(sharding=Sharding.FSDP_FULL)
    offers, _ = fast(recipe, micro_batch=1, accum_steps=48, ranks=2, gpu=gpu)
    alone = next(offer for offer in offers if next(iter(offer.change)) == "micro-batch")
    for offer in offers:
        if offer is not alone and "micro-batch" in offer.change:
            assert offer.time_ratio < 0.975 * alone.time_ratio


def test_offload_and_whole_sharding_are_given_up_where_there_is_room():
    offers, _ = fast(Recipe(sharding=Sharding.ZERO3, offload=Offload.PARAMS), ranks=4)
    assert any(offer.change.get("offload") == "none" for offer in offers)
    offers, _ = fast(
        Recipe(sharding=Sharding.FSDP_FULL), ranks=4, micro_batch=1, accum_steps=16,
        gpu=A100.model_copy(update={"link_gb_per_s": None}),
    )  # fmt: skip
    assert {"sharding": "fsdp-grad-op"}.items() <= {
        item for offer in offers for item in offer.change.items()
    }


def test_nothing_faster_is_said_of_a_plan_without_a_clock():
    bare = Gpu(name="bare", usable_bytes=2**36)
    offers, start = fast(Recipe(sharding=Sharding.ZERO1), gpu=bare)
    assert start.step_time is None
    assert offers == ()


# --- the peak ------------------------------------------------------------------------------------


def explained(recipe=None, *, micro_batch=8, accum_steps=1, seq_len=512, **shape):
    def source(recipe: Recipe, seq_len: int):
        return toy_profile(**shape, method=recipe.method, checkpointing=recipe.checkpointing)

    pricer = ProfilePricer(profiles=source, gpu=A100)
    batch = Batch(micro_batch=micro_batch, accum_steps=accum_steps, seq_len=seq_len)
    recipe = recipe or Recipe(sharding=Sharding.ZERO1)
    memory = pricer.confirm(recipe=recipe, batch=batch, cluster=Cluster())
    found = explain_peak(
        pricer, recipe, batch, Cluster(), memory, checkpointings=tuple(Checkpointing)
    )

    def peak(recipe: Recipe, **changes) -> int:
        other = batch.model_copy(update=changes)
        return pricer.price(recipe=recipe, batch=other, cluster=Cluster()).peak_bytes

    return found, memory, peak


def test_batch_size_does_not_matter_where_the_optimizer_step_binds():
    recipe = Recipe(sharding=Sharding.ZERO1, optimizer_impl=OptimizerImpl.FOREACH)
    found, memory, _ = explained(recipe, micro_batch=2, num_layers=24, hidden_size=1024)
    assert found.binding == memory.peak_phase == "optimizer step"
    assert not found.batch_matters
    assert "The optimizer step binds" in found.text
    assert "Batch size does not matter here" in found.text
    assert [mover.change for mover in found.movers] == [{"optimizer-impl": "fused"}]
    single, _, _ = explained(recipe, micro_batch=1, num_layers=24, hidden_size=1024)
    assert not single.batch_matters


@pytest.mark.parametrize("vocabulary", [1000, 50_000])
def test_what_moves_the_peak_is_what_really_lowers_it(vocabulary):
    shape = {"num_layers": 16, "hidden_size": 512, "vocabulary": vocabulary}
    found, memory, peak = explained(micro_batch=16, **shape)
    recipe = Recipe(sharding=Sharding.ZERO1)
    assert found.batch_matters
    assert "does not matter" not in found.text
    saved = {tuple(mover.change.items()): mover.saved_bytes for mover in found.movers}
    now = peak(recipe)
    assert saved[("micro-batch", "8"),] == now - peak(recipe, micro_batch=8)
    assert saved[("micro-batch", "15"),] == now - peak(recipe, micro_batch=15)
    full = recipe.model_copy(update={"checkpointing": Checkpointing.FULL})
    assert saved[("checkpointing", "full"),] == now - peak(full)
    assert list(saved.values()) == sorted(saved.values(), reverse=True)
    highest = sorted(memory.timeline, key=lambda moment: moment.num_bytes)
    others = [moment for moment in highest if moment.stage != highest[-1].stage]
    assert found.margin_bytes == highest[-1].num_bytes - others[-1].num_bytes
    assert others[-1].stage in found.next


def test_accumulation_moves_the_peak_where_gradients_wait():
    found, _, peak = explained(
        Recipe(sharding=Sharding.DDP), accum_steps=4, num_layers=16, hidden_size=1024, micro_batch=4
    )
    recipe = Recipe(sharding=Sharding.DDP)
    saved = {tuple(mover.change.items()): mover.saved_bytes for mover in found.movers}
    assert saved[("accum-steps", "1"),] == peak(recipe) - peak(recipe, accum_steps=1)


def test_an_explanation_takes_no_time():
    begin = process_time()
    explained(num_layers=80, hidden_size=1024)
    both = process_time() - begin
    assert both < 2  # the play is most of it
    pricer = ProfilePricer(profiles=toy_profiles, gpu=A100)
    recipe, batch = Recipe(sharding=Sharding.ZERO1), Batch(micro_batch=8, seq_len=512)
    memory = pricer.confirm(recipe=recipe, batch=batch, cluster=Cluster())
    begin = process_time()
    for _ in range(10):
        explain_peak(pricer, recipe, batch, Cluster(), memory)
    assert (process_time() - begin) / 10 < 0.05


def test_states_alone_have_one_instant_and_nothing_to_explain():
    answer = batchplan.recommend(params="1e9", gpu="80GB")
    assert answer.plans[0].peak is None
