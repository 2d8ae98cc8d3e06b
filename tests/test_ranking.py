"""What is best: fronts against every pair, deadlines, prices, and what a device cannot run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import FakePricer, bill, find
from strategies import A100, RTX_4090

from batchplan.errors import SpecError
from batchplan.planner import Aim, Candidate, scores
from batchplan.planner.candidates import Layout
from batchplan.planner.hardware import check_attention, supported_attentions
from batchplan.planner.ranking import TIE, best, pareto_front
from batchplan.sources import find_gpu
from batchplan.spec import (
    Attention,
    BatchGoal,
    Checkpointing,
    Cluster,
    Objective,
    Recipe,
    Sharding,
)

LAYOUTS = [
    Layout(recipe=Recipe(sharding=sharding), cluster=Cluster(num_ranks=ranks))
    for sharding in (Sharding.DDP, Sharding.ZERO3)
    for ranks in (1, 2, 8)
]
candidates = st.builds(
    Candidate,
    st.sampled_from(LAYOUTS),
    st.integers(1, 8),
    st.integers(1, 8),
    st.just(0.0),
    st.floats(1e-6, 1e-3),
    st.integers(10**9, 10**11),
)


@settings(deadline=None)
@given(st.lists(candidates, min_size=1, max_size=30))
def test_a_front_beats_everything_and_nothing_on_it_beats_another(pool):
    front = list(pareto_front(pool))

    def beats(one, other, slack):
        return (
            one.seconds_per_token <= other.seconds_per_token
            and one.peak_bytes <= other.peak_bytes * (1 + slack)
            and one.num_ranks <= other.num_ranks
        )

    for each in pool:
        assert any(beats(kept, each, 2 * TIE) for kept in front)
    for kept in front:
        assert not any(beats(each, kept, 0) and each != kept for each in front)
    assert front == sorted(front, key=lambda each: each.seconds_per_token)


@settings(deadline=None)
@given(st.lists(candidates, min_size=1, max_size=30), st.floats(0.1, 100))
def test_a_deadline_is_met_with_the_fewest_devices_or_missed_by_the_least(pool, hours):
    aim = Aim(objective=Objective.TIME, train_tokens=10**8, deadline_seconds=3600 * hours)
    found = best(pool, aim)
    in_time = [each for each in pool if each.seconds_per_token * 10**8 <= 3600 * hours]
    if in_time:
        assert found in in_time
        assert found.num_ranks == min(each.num_ranks for each in in_time)
    else:
        least = min(each.seconds_per_token for each in pool)
        late = found.seconds_per_token * 10**8 - 3600 * hours
        assert late <= (least * 10**8 - 3600 * hours) * (1 + TIE) * (1 + 1e-9)


def test_cost_counts_every_device_and_its_price():
    slow, fast = (
        Candidate(LAYOUTS[at], 1, 1, 0.0, seconds, 10**9) for at, seconds in ((0, 4e-5), (2, 1e-5))
    )
    assert best([slow, fast], Aim(objective=Objective.COST)) is slow
    assert best([slow, fast], Aim()) is fast
    dear = Aim(objective=Objective.COST, price=3.0)
    assert scores(slow, dear)[0] == pytest.approx(
        3 * scores(slow, Aim(objective=Objective.COST))[0]
    )


def test_what_cannot_be_ranked_is_refused_with_what_is_missing():
    with pytest.raises(SpecError, match="--dataset-tokens and --deadline"):
        find(aim=Aim(objective=Objective.TIME))
    with pytest.raises(SpecError, match="rates of this device are unknown"):
        find(aim=Aim(objective=Objective.COST), gpu=find_gpu("24GiB"))


def test_auto_devices_go_on_until_the_deadline_is_met():
    space = {"num_ranks": (1, 2, 4, 8), "stop_at_first_fit": True, "micro_batch": 1}
    pricer, goal = FakePricer(states=0), BatchGoal(target_tokens=65_536)
    one = find(pricer, goal=goal, **space).plans[0]
    assert one.batch.num_ranks == 1
    tokens = 10**9
    alone = tokens / one.tokens_per_second
    aim = Aim(objective=Objective.TIME, train_tokens=tokens, deadline_seconds=alone / 3)
    assert find(pricer, goal=goal, aim=aim, **space).plans[0].batch.num_ranks == 4
    hopeless = Aim(objective=Objective.TIME, train_tokens=tokens, deadline_seconds=alone / 99)
    missed = find(pricer, goal=goal, aim=hopeless, **space)
    assert missed.plans[0].batch.num_ranks == 8
    assert "deadline-missed" in {caveat.code for caveat in missed.caveats}


class _Misleading(FakePricer):
    """Its quick price is right for ZeRO and far too low for FSDP."""

    def confirm(self, *, recipe, batch, cluster):
        found = self.price(recipe=recipe, batch=batch, cluster=cluster).peak_bytes
        return bill(found * (3 if recipe.sharding is Sharding.FSDP_FULL else 1))


def test_the_least_memory_is_that_of_the_confirmed_peaks():
    space = {"shardings": (Sharding.FSDP_FULL, Sharding.ZERO3, Sharding.ZERO2)}
    for limit in (1, 9):
        plans = find(_Misleading(), aim=Aim(objective=Objective.MEMORY), limit=limit, **space).plans
        peaks = [plan.memory.peak_bytes for plan in plans]
        assert peaks == sorted(peaks)
        assert plans[0].recipe.sharding is Sharding.ZERO3


def test_a_deadline_beside_another_aim_is_told_for_what_it_is():
    goal, tokens = BatchGoal(target_tokens=65_536), 10**9
    fast = find(goal=goal, num_ranks=(1, 8)).plans[0]
    aim = Aim(
        objective=Objective.DEVICES,
        train_tokens=tokens,
        deadline_seconds=1.5 * tokens / fast.tokens_per_second,
    )
    answer = find(goal=goal, aim=aim, num_ranks=(1, 8))
    (late,) = (each for each in answer.caveats if each.code == "deadline-missed")
    assert answer.plans[0].batch.num_ranks == 1
    assert "--optimize time puts the deadline first" in late.text
    assert "No plan" not in late.text


def test_a_front_on_request_has_the_best_plan_first_and_only_what_fits():
    answer = find(goal=BatchGoal(target_tokens=4_000_000), pareto=True, num_ranks=(2, 4, 8))
    front = answer.pareto
    assert len(front) > 3
    assert all(plan.fits for plan in front)
    fastest = max(plan.tokens_per_second for plan in answer.plans)
    assert front[0].tokens_per_second >= fastest
    assert min(plan.batch.num_ranks for plan in front) < 8


@pytest.mark.parametrize(
    ("name", "runs_flash"),
    [
        ("v100-32gb", False),
        ("t4", False),
        ("a100-40gb", True),
        ("rtx-4090", True),
        ("mi300x", True),
    ],
)
def test_flash_attention_needs_ampere(name, runs_flash):
    gpu = find_gpu(name)
    assert (Attention.FLASH in supported_attentions(gpu)) is runs_flash
    flash = Recipe(attention=Attention.FLASH)
    if runs_flash:
        check_attention(flash, gpu)
    else:
        with pytest.raises(SpecError, match="does not run on"):
            check_attention(flash, gpu)


def test_attention_is_searched_where_several_are_given_and_the_simplest_wins_a_tie():
    both = (Attention.FLASH, Attention.SDPA)
    answer = find(attentions=both, checkpointings=(Checkpointing.NONE,), num_ranks=(1,))
    assert [plan.recipe.attention for plan in answer.plans] == [Attention.SDPA, Attention.FLASH]


def test_a_recipe_that_is_not_allowed_is_never_planned():
    answer = find(
        gpu=RTX_4090,
        refusals=lambda recipe, _: () if recipe.sharding is Sharding.ZERO3 else ("no",),
    )
    assert {plan.recipe.sharding for plan in answer.plans} == {Sharding.ZERO3}
    assert find(gpu=A100).plans[0].recipe.sharding is not Sharding.ZERO3
