"""The planner: against a dumber search, the lessons' numbers, pins and honesty."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import BARE, EXPLICIT, STATES_ONLY, FakePricer, ask, find
from strategies import A100, H100, TOY_MODEL, toy_profiles

import batchplan
from batchplan.errors import SpecError
from batchplan.planner import Aim, ProfilePricer, SearchSpace, StatesPricer
from batchplan.spec import (
    Batch,
    BatchGoal,
    Caveat,
    Checkpointing,
    Cluster,
    Gpu,
    Method,
    Objective,
    Offload,
    Optimizer,
    Recipe,
    Sharding,
)


def codes(caveats: tuple[Caveat, ...]) -> set[str]:
    return {caveat.code for caveat in caveats}


def describe(plan) -> tuple:
    recipe, batch = plan.recipe, plan.batch
    return (
        batch.num_ranks,
        recipe.sharding,
        recipe.checkpointing,
        recipe.offload,
        batch.micro_batch,
        batch.accum_steps,
    )


# --- the lessons ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("micro_batch", "accum_steps", "num_ranks", "seq_len", "sequences", "tokens"),
    [
        (8, 4, 1, 512, 32, 16_384),
        (2, 128, 8, 2048, 2048, 4_194_304),
        (4, 50, 16, 4096, 3200, 13_107_200),
    ],
)
def test_a_pinned_split_has_the_lessons_global_batch(
    micro_batch, accum_steps, num_ranks, seq_len, sequences, tokens
):
    answer = find(
        num_ranks=(num_ranks,), micro_batch=micro_batch, accum_steps=accum_steps, seq_len=seq_len
    )
    batch = answer.plans[0].batch
    assert (batch.micro_batch, batch.accum_steps, batch.num_ranks) == (
        micro_batch,
        accum_steps,
        num_ranks,
    )
    assert (batch.global_batch_size, batch.global_batch_tokens) == (sequences, tokens)


def test_four_million_tokens_on_eight_ranks_at_micro_batch_one_take_244_steps():
    answer = find(goal=BatchGoal(target_tokens=4_000_000), seq_len=2048, micro_batch=1)
    plan = answer.plans[0]
    assert plan.batch.accum_steps == 244
    assert plan.batch.global_batch_size == 1952
    assert plan.target_deviation == pytest.approx(1952 / 1953.125 - 1)
    assert "accumulation-reason" in codes(plan.caveats)


@pytest.mark.parametrize(("sharding", "gigabytes"), [("zero2", 65), ("zero3", 45.5)])
def test_13b_on_four_40_gb_cards_is_over_by_the_lessons_bytes(sharding, gigabytes):
    answer = thirteen_billion(sharding)
    assert not answer.plans
    assert answer.closest.memory.peak_bytes == gigabytes * 10**9
    assert answer.closest.headroom_bytes == (40 - gigabytes) * 10**9


def thirteen_billion(sharding: str):
    return ask(
        StatesPricer(num_params=13 * 10**9),
        SearchSpace(num_ranks=(4,), seq_len=2048, shardings=(Sharding(sharding),)),
        recipe=Recipe(**EXPLICIT),
        gpu=Gpu(name="40 GB", usable_bytes=40 * 10**9),
        model=STATES_ONLY,
    )


def test_one_rank_of_seven_billion_parameters_needs_the_lessons_98_gb():
    answer = ask(
        StatesPricer(num_params=7 * 10**9, activation_bytes=2 * 10**9),
        SearchSpace(num_ranks=(1,), seq_len=2048),
        recipe=Recipe(**EXPLICIT),
        gpu=Gpu(name="80 GB", usable_bytes=80 * 10**9),
        model=STATES_ONLY,
    )
    assert answer.closest.memory.peak_bytes == 100 * 10**9
    assert all(rescue.plan.fits for rescue in answer.rescues)


def test_accumulation_needs_less_memory_than_the_same_batch_at_once():
    answer = find(
        goal=BatchGoal(target_sequences=64), micro_batch=1, num_ranks=(1,), budget=720_000
    )
    plan = answer.plans[0]
    assert plan.batch.accum_steps == 64
    assert plan.peak_bytes_without_accumulation > plan.memory.peak_bytes


# --- against a dumber search ---------------------------------------------------------------------


NARROWED = {
    # What is made small in turn, and the share of it that counts as equal.
    "throughput": [("time", 0.005)],
    "memory": [("peak", 0.005), ("time", 0.005)],
    "devices": [("ranks", 0), ("time", 0.005)],
    "cost": [("device_time", 0.005), ("time", 0.005)],
}


def dumb_search(
    pricer, *, ranks, shardings, checkpointings, seq_len, target, tolerance, budget, objective
):
    """Every combination of small numbers, priced one by one; yields winners, best first."""
    pool = []
    for num_ranks in ranks:
        for sharding in shardings[:1] if num_ranks == 1 else shardings:
            for checkpointing in checkpointings:
                recipe = Recipe(sharding=sharding, checkpointing=checkpointing)
                cluster = Cluster(num_ranks=num_ranks)
                timer = pricer.timer(recipe=recipe, cluster=cluster, seq_len=seq_len)
                for micro_batch in range(1, 200):
                    one = micro_batch * num_ranks * seq_len
                    every = range(1, target // one + 3)
                    under = [steps for steps in every if steps * one <= target]
                    over = [steps for steps in every if steps * one >= target]
                    for steps in {*under[-1:], *over[:1]}:
                        if micro_batch > 1 and steps == 1 and one - num_ranks * seq_len >= target:
                            continue  # a smaller micro-batch already overshoots
                        batch = Batch(
                            micro_batch=micro_batch,
                            accum_steps=steps,
                            num_ranks=num_ranks,
                            seq_len=seq_len,
                        )
                        peak = pricer.price(recipe=recipe, batch=batch, cluster=cluster).peak_bytes
                        if peak > budget:
                            continue
                        off = abs(steps * one - target) / target
                        time = timer.seconds(micro_batch, steps) / (steps * one)
                        values = {
                            "time": time,
                            "peak": peak,
                            "ranks": num_ranks,
                            "device_time": time * num_ranks,
                        }
                        pool.append((num_ranks, sharding, checkpointing, batch, off, values))
    if any(each[4] <= tolerance for each in pool):
        pool = [each for each in pool if each[4] <= tolerance]
    elif pool:
        nearest = min(each[4] for each in pool)
        pool = [each for each in pool if each[4] == nearest]
    simple = list(Sharding)
    while pool:
        equals = pool
        for value, tie in NARROWED[objective]:
            least = min(each[5][value] for each in equals)
            equals = [each for each in equals if each[5][value] <= least * (1 + tie)]
        best = min(
            equals,
            key=lambda each: (
                each[4],
                simple.index(each[1]),
                each[2] is Checkpointing.FULL,
                each[3].accum_steps,
                each[3].global_batch_size,
            ),
        )
        yield (best[0], best[1], best[2], Offload.NONE, best[3].micro_batch, best[3].accum_steps)
        pool = [each for each in pool if each[:3] != best[:3]]


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.integers(1, 6), min_size=1, max_size=3),
    st.lists(
        st.sampled_from([Sharding.DDP, Sharding.ZERO2, Sharding.ZERO3, Sharding.FSDP_FULL]),
        unique=True,
        min_size=1,
    ),
    st.sampled_from([64, 100, 1024]),
    st.integers(6, 120),
    st.sampled_from([0.0, 0.02, 0.1]),
    st.integers(150, 1500),
    st.sampled_from([A100, H100]),
    st.sampled_from(sorted(NARROWED)),
)
def test_search_equals_a_dumber_search(
    ranks, shardings, seq_len, sequences, tolerance, kib, gpu, objective
):
    pricer = FakePricer(gpu=gpu, states=400)
    target, budget = sequences * seq_len + 17, 1000 * kib
    checkpointings = (Checkpointing.NONE, Checkpointing.FULL)
    answer = find(
        pricer,
        budget=budget,
        gpu=gpu,
        goal=BatchGoal(target_tokens=target, tolerance=tolerance),
        num_ranks=tuple(ranks),
        shardings=tuple(shardings),
        checkpointings=checkpointings,
        seq_len=seq_len,
        limit=100,
        aim=Aim(objective=Objective(objective)),
    )
    expected = list(
        dumb_search(
            pricer,
            ranks=sorted(ranks),
            shardings=shardings,
            checkpointings=checkpointings,
            seq_len=seq_len,
            target=target,
            tolerance=tolerance,
            budget=budget,
            objective=objective,
        )
    )
    assert [describe(plan) for plan in answer.plans] == expected


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 16),
    st.integers(1, 4096),
    st.integers(1, 5_000_000),
    st.integers(100, 5000),
)
def test_every_plan_keeps_the_identity_its_budget_and_its_word(ranks, seq_len, tokens, kib):
    if tokens < seq_len:
        return
    goal = BatchGoal(target_tokens=tokens)
    answer = find(goal=goal, num_ranks=(ranks,), seq_len=seq_len, budget=1000 * kib)
    keys = set()
    for plan in answer.plans:
        batch = plan.batch
        assert batch.global_batch_size == batch.micro_batch * batch.accum_steps * ranks
        assert plan.target_deviation == pytest.approx(batch.global_batch_tokens / tokens - 1)
        assert plan.memory.peak_bytes <= 1000 * kib
        outside = "outside-tolerance" in codes(plan.caveats)
        assert outside == (abs(plan.target_deviation) > goal.tolerance)
        keys.add(describe(plan)[:4])
    assert len(keys) == len(answer.plans)
    assert bool(answer.plans) == (answer.closest is None)
    speeds = [plan.tokens_per_second for plan in answer.plans]
    assert all(later <= earlier * 1.0051 for earlier, later in pairwise(speeds))
    for rescue in answer.rescues:
        assert rescue.plan.fits


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([Sharding.DDP, Sharding.ZERO2, Sharding.ZERO3]),
    st.sampled_from([Checkpointing.NONE, Checkpointing.FULL]),
)
def test_pins_are_honoured(micro_batch, accum_steps, sharding, checkpointing):
    answer = find(
        goal=BatchGoal(target_sequences=64, tolerance=0.5),
        micro_batch=micro_batch,
        accum_steps=accum_steps,
        shardings=(sharding,),
        checkpointings=(checkpointing,),
    )
    (plan,) = answer.plans
    assert describe(plan) == (8, sharding, checkpointing, Offload.NONE, micro_batch, accum_steps)


# --- what is tried, and what is said -------------------------------------------------------------


def test_without_a_target_k_is_one_and_the_answer_says_why():
    answer = find(num_ranks=(4,), budget=2_000_000)
    assert all(plan.batch.accum_steps == 1 for plan in answer.plans)
    assert codes(answer.caveats) == {"no-target"}


def test_a_pinned_k_without_a_target_has_no_reason():
    plan = find(accum_steps=4).plans[0]
    assert "accumulation-has-no-reason" in codes(plan.caveats)


def test_the_reason_for_k_names_amortisation_only_where_it_is_true():
    texts = {}
    for sharding in (Sharding.DDP, Sharding.ZERO3):
        plan = find(
            goal=BatchGoal(target_sequences=256), micro_batch=2, shardings=(sharding,)
        ).plans[0]
        texts[sharding] = " ".join(caveat.text for caveat in plan.caveats)
    assert "divides the communication of ddp by 16" in texts[Sharding.DDP]
    assert "divides the communication" not in texts[Sharding.ZERO3]


def test_a_large_fine_tuning_micro_batch_is_outside_practice():
    small = find(micro_batch=8, budget=10**7).plans[0]
    large = find(micro_batch=9, budget=10**7).plans[0]
    assert "micro-batch-outside-practice" not in codes(small.caveats)
    assert "micro-batch-outside-practice" in codes(large.caveats)


def test_what_only_the_quick_price_lets_in_is_never_shown():
    budget = 700_000
    pricer = FakePricer(missed_percent=30)
    plans = find(pricer=pricer, budget=budget).plans
    assert plans
    assert all(plan.memory.bound_bytes <= budget for plan in plans)
    quick = find(budget=budget).plans
    assert {plan.batch.micro_batch for plan in quick} != {p.batch.micro_batch for p in plans}


def test_a_target_below_one_sequence_is_refused_with_the_numbers():
    with pytest.raises(SpecError, match=r"1,000 tokens is less than one sequence of 1,024"):
        find(goal=BatchGoal(target_tokens=1000))


def test_fewer_sequences_than_ranks_are_pointed_out():
    plan = find(goal=BatchGoal(target_sequences=4)).plans[0]
    assert plan.batch.global_batch_size == 8
    assert {"fewer-sequences-than-ranks", "outside-tolerance"} <= codes(plan.caveats)


def test_no_plan_within_tolerance_gives_the_nearest_with_its_numbers():
    goal = BatchGoal(target_sequences=13, tolerance=0.0)
    plans = find(goal=goal, num_ranks=(4,)).plans
    assert {plan.batch.global_batch_size for plan in plans} == {12}
    (caveat,) = [each for each in plans[0].caveats if each.code == "outside-tolerance"]
    assert "12,288 tokens (12 sequences) where 13,312 were asked, -7.69%" in caveat.text


def test_automatic_devices_are_the_fewest_that_fit():
    answer = find(num_ranks=(1, 2, 4, 8), stop_at_first_fit=True, budget=250_000, micro_batch=1)
    assert {plan.batch.num_ranks for plan in answer.plans} == {4}
    everywhere = find(num_ranks=(1, 2, 4, 8), budget=250_000, micro_batch=1)
    assert max(plan.batch.num_ranks for plan in everywhere.plans) == 8


def test_automatic_devices_go_on_where_only_the_quick_price_fits():
    # Fully split, 600,000 are 152,000 on four devices and 77,000 on eight, sequence included.
    space = {"stop_at_first_fit": True, "budget": 155_000, "micro_batch": 1}
    for missed_percent, least in ((0, 4), (30, 8)):
        pricer = FakePricer(missed_percent=missed_percent)
        answer = find(pricer, num_ranks=(1, 2, 4, 8), **space)
        assert {plan.batch.num_ranks for plan in answer.plans} == {least}
        assert all(plan.fits for plan in answer.plans)


def test_one_rank_tries_one_sharding_and_one_node_no_hybrid():
    alone = find(num_ranks=(1,), budget=10**7, limit=50)
    assert {plan.recipe.sharding for plan in alone.plans} == {Sharding.DDP}
    together = find(num_ranks=(8,), budget=10**7, limit=50)
    assert Sharding.FSDP_HYBRID not in {plan.recipe.sharding for plan in together.plans}
    across = find(num_ranks=(16,), num_nodes=2, budget=10**7, limit=50)
    assert Sharding.FSDP_HYBRID in {plan.recipe.sharding for plan in across.plans}


def test_offload_is_tried_only_where_the_library_can():
    answer = find(offloads=(Offload.OPTIMIZER, Offload.PARAMS), budget=10**7, limit=50)
    pairs = {(plan.recipe.sharding, plan.recipe.offload) for plan in answer.plans}
    assert (Sharding.DDP, Offload.OPTIMIZER) not in pairs
    assert (Sharding.ZERO2, Offload.OPTIMIZER) in pairs
    assert (Sharding.ZERO2, Offload.PARAMS) not in pairs
    with pytest.raises(SpecError, match="offloading the optimizer needs zero1 to zero3"):
        find(offloads=(Offload.OPTIMIZER,), shardings=(Sharding.DDP,))


def test_devices_that_do_not_divide_over_nodes_are_refused_or_skipped():
    with pytest.raises(SpecError, match="3 devices do not divide over 2 nodes"):
        find(num_ranks=(3,), num_nodes=2)
    answer = find(num_ranks=(3, 4), num_nodes=2, budget=10**7)
    assert {plan.batch.num_ranks for plan in answer.plans} == {4}


@pytest.mark.parametrize(
    ("field_name", "value", "flag"),
    [
        ("seq_len", 0, "--seq-len"),
        ("micro_batch", 0, "--micro-batch"),
        ("num_ranks", (0,), "--dev"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(field_name, value, flag):
    with pytest.raises(SpecError, match=flag):
        find(**{field_name: value})


def test_without_rates_less_recomputation_and_larger_micro_batches_come_first():
    answer = find(gpu=BARE, goal=BatchGoal(target_sequences=64), budget=700_000, limit=2)
    assert all(plan.step_time is None for plan in answer.plans)
    best = answer.plans[0]
    assert best.recipe.checkpointing is Checkpointing.NONE
    assert best.batch.accum_steps == 1


def test_the_search_never_changes_what_is_trained():
    recipe = Recipe(method=Method.LORA, optimizer=Optimizer.LION, numerics="bf16", lora_rank=3)
    for plan in find(recipe=recipe, limit=50).plans:
        kept = plan.recipe.model_dump(exclude={"sharding", "checkpointing", "offload"})
        assert kept == recipe.model_dump(exclude={"sharding", "checkpointing", "offload"})


def test_searched_counts_what_was_priced_and_did_not_fit():
    tries = {"num_ranks": (1,), "shardings": (Sharding.DDP,), "checkpointings": ("none",)}
    # 10,000 bytes a sequence: 1 to 4 fit and 5 does not, which ends it.
    answer = find(FakePricer(states=0), budget=40_000, **tries)
    assert answer.plans[0].batch.micro_batch == 4
    assert answer.searched == 5
    nothing = find(FakePricer(states=0), budget=9_000, **tries)
    assert (nothing.plans, nothing.searched) == ((), 1)
    aimed = find(FakePricer(states=0), budget=9_000, goal=BatchGoal(target_sequences=64), **tries)
    assert aimed.searched == 1


# --- several nodes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "nodes"), [(1, 1), (8, 1), (9, 3), (12, 2), (16, 2), (20, 4), (32, 4), (13, 13)]
)
def test_more_than_eight_devices_are_taken_to_be_the_fewest_nodes_that_divide(ranks, nodes):
    assert Cluster(num_ranks=ranks).num_nodes == nodes
    plan = find(num_ranks=(ranks,), budget=10**7).plans[0]
    assert plan.num_nodes == nodes
    assert ("nodes-assumed" in codes(plan.caveats)) is (nodes > 1)
    assert ("inter-node-assumed" in codes(plan.caveats)) is (nodes > 1)


def test_given_nodes_are_kept_and_carry_no_caveat():
    space = {"num_ranks": (16,), "budget": 10**7, "inter_node_gb_per_s": 50.0}
    for nodes in (1, 4):
        plan = find(num_nodes=nodes, **space).plans[0]
        assert plan.num_nodes == nodes
        assert not {"nodes-assumed", "inter-node-assumed"} & codes(plan.caveats)


def test_hybrid_is_searched_wherever_the_devices_span_nodes():
    answer = find(num_ranks=(8, 16), budget=10**7, limit=100)
    hybrid = {
        plan.batch.num_ranks
        for plan in answer.plans
        if plan.recipe.sharding is Sharding.FSDP_HYBRID
    }
    assert hybrid == {16}


def test_a_slower_network_between_nodes_is_a_slower_plan():
    def speed(rate: float | None) -> float:
        plan = find(
            num_ranks=(16,),
            budget=10**7,
            micro_batch=1,
            shardings=(Sharding.ZERO3,),
            inter_node_gb_per_s=rate,
        ).plans[0]
        return plan.tokens_per_second

    assert speed(None) == speed(25.0) > speed(1.0)


def test_devices_without_nodes_replay_to_the_same_nodes():
    asked = {"params": "70e9", "gpu": "40GB", "devices": "auto", "sharding": "zero3"}
    answer = batchplan.recommend(**asked)
    assert {(plan.batch.num_ranks, plan.num_nodes) for plan in answer.plans} == {(32, 4)}
    assert answer.inputs["nodes"] is answer.inputs["inter_node_gb_per_s"] is None
    again = batchplan.recommend(**answer.inputs)
    assert again.to_dict()["plans"] == answer.to_dict()["plans"]
    given = batchplan.recommend(**asked, nodes=1, inter_node_gb_per_s=12.5)
    assert {plan.num_nodes for plan in given.plans} == {1}
    assert given.inputs["inter_node_gb_per_s"] == 12.5
    again = batchplan.recommend(**given.inputs)
    assert again.to_dict()["plans"] == given.to_dict()["plans"]


def test_a_range_of_devices_brings_hybrid_where_it_spans_nodes():
    answer = batchplan.recommend(params="1e9", gpu="80GB", devices="7..17", limit=100)
    hybrid = {
        plan.batch.num_ranks
        for plan in answer.plans
        if plan.recipe.sharding is Sharding.FSDP_HYBRID
    }
    assert hybrid == {9, 10, 12, 14, 15, 16}  # 11, 13 and 17 leave one device on each node


def test_an_estimate_takes_the_same_nodes():
    asked = {"params": "7e9", "gpu": "80GB", "sharding": "fsdp-hybrid", "devices": 16}
    assumed = batchplan.estimate(**asked)
    assert assumed.memory == batchplan.estimate(**asked, nodes=2).memory
    assert assumed.memory.peak_bytes > batchplan.estimate(**asked, nodes=1).memory.peak_bytes
    assert assumed.inputs["nodes"] is None


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), True, "fast"])
def test_a_rate_between_nodes_that_makes_no_sense_is_refused(rate):
    with pytest.raises(SpecError, match=r"--inter-node-gb-per-s .* must be GB/s above 0"):
        batchplan.recommend(params="7e9", gpu="80GB", inter_node_gb_per_s=rate)


# --- with the real arithmetic --------------------------------------------------------------------


def real(**changes):
    question = {
        "recipe": Recipe(),
        "space": SearchSpace(num_ranks=(1, 2, 4, 8), seq_len=512),
        "goal": BatchGoal(target_tokens=1_000_000),
        "gpu": A100.model_copy(update={"usable_bytes": 2**30}),
        "model": TOY_MODEL,
    }
    question |= changes
    return ask(ProfilePricer(profiles=toy_profiles, gpu=question["gpu"]), **question)


def test_the_real_arithmetic_gives_plans_that_fit_and_hit_the_target():
    answer = real()
    assert answer.plans
    for plan in answer.plans:
        assert plan.fits
        assert abs(plan.target_deviation) <= 0.02
        assert sum(term.num_bytes for term in plan.memory.terms) == plan.memory.peak_bytes
        assert plan.step_time.mid > 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.sampled_from([64, 512, 2048]), st.integers(20, 2000))
def test_the_largest_micro_batch_by_bisection_is_the_largest_by_trial(ranks, seq_len, mib):
    gpu = BARE.model_copy(update={"usable_bytes": (1024 * (ranks > 1) + mib) * 2**20})
    answer = real(
        gpu=gpu,
        goal=BatchGoal(),
        space=SearchSpace(
            num_ranks=(ranks,),
            seq_len=seq_len,
            shardings=(Sharding.DDP,),
            checkpointings=(Checkpointing.NONE,),
        ),
    )

    def peak(micro_batch: int) -> int:
        pinned = real(
            gpu=gpu,
            goal=BatchGoal(),
            space=SearchSpace(
                num_ranks=(ranks,),
                seq_len=seq_len,
                shardings=(Sharding.DDP,),
                checkpointings=(Checkpointing.NONE,),
                micro_batch=micro_batch,
            ),
        )
        return (pinned.plans[0] if pinned.plans else pinned.closest).memory.bound_bytes

    if not answer.plans:
        assert peak(1) > gpu.usable_bytes
        return
    best = answer.plans[0].batch.micro_batch
    assert peak(best) <= gpu.usable_bytes
    assert best == 4096 or peak(best + 1) > gpu.usable_bytes


def test_a_larger_card_never_gives_a_slower_best_plan():
    speeds = [
        real(gpu=A100.model_copy(update={"usable_bytes": mib * 2**20})).plans[0].tokens_per_second
        for mib in (1300, 2000, 4000, 16_000)
    ]
    assert all(later >= earlier * 0.99 for earlier, later in pairwise(speeds))
