"""Brute force over every valid candidate; what fits is ranked by what the user optimises.

Quick price and step timer are made once per layout; each candidate then costs a few
multiplications. Whatever is shown is priced again exactly as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from batchplan.errors import SpecError
from batchplan.planner.assemble import Question, assemble, search_caveats
from batchplan.planner.candidates import (
    Layout,
    SearchSpace,
    accum_choices,
    check_target,
    clusters,
    deviation,
    largest_micro_batch,
    layouts,
    nothing_refused,
)
from batchplan.planner.confirmed import batch_of, best_plans, front_plans
from batchplan.planner.plan import Answer, Plan
from batchplan.planner.ranking import Aim, Candidate, best
from batchplan.planner.rescue import ladder, rescues
from batchplan.spec import Batch, Caveat, Objective, Recipe
from batchplan.units import format_seconds

DEFAULT_LIMIT = 5


def search(
    *,
    question: Question,
    recipe: Recipe,
    space: SearchSpace,
    aim: Aim | None = None,
    limit: int = DEFAULT_LIMIT,
    pareto: bool = False,
) -> Answer:
    """Return the best plans that fit, or what would make one fit.

    Method, numerics and optimizer stay as the recipe says.

    Args:
        question: model, device, goal and how candidates are priced.
        recipe: what is trained and how; what ``space`` has an axis for is searched.
        space: the values of each axis, pins included.
        aim: what is optimised; throughput when None.
        limit: most plans to return, one for each ``Layout.key``.
        pareto: whether to return the plans that no other beats in time, memory and devices.

    Raises:
        SpecError: when target, pins and space admit no candidate at all, or the aim cannot be
            ranked.
    """
    aim = aim or Aim()
    confirms = partial(_is_confirmed, question, space, aim)
    weighed = _weigh_all(question, recipe, space, aim, is_enough=confirms)
    searched = sum(one.num_priced for one in weighed)
    caveats = tuple(search_caveats(question=question, recipe=recipe))
    candidates = [each for one in weighed for each in one.fitting]
    plans = tuple(best_plans(question, space, candidates, aim, limit))
    if plans:
        return Answer(
            plans=plans,
            closest=None,
            ladder=(),
            rescues=(),
            searched=searched,
            caveats=(*caveats, *_late(aim, plans[0])),
            pareto=tuple(front_plans(question, space, candidates)) if pareto else (),
        )
    closest = _closest(question, space, [one.layout for one in weighed])
    return Answer(
        plans=(),
        closest=closest,
        ladder=ladder(question=question, space=space, start=closest),
        rescues=rescues(question=question, space=space, start=closest),
        searched=searched,
        caveats=caveats,
    )


def shortlist(
    *, question: Question, recipe: Recipe, space: SearchSpace, aim: Aim
) -> Candidate | None:
    """Return the best candidate by the quick price, unconfirmed; None when nothing fits.

    For comparing many devices, of which few are shown.

    Raises:
        SpecError: as ``search``.
    """
    weighed = _weigh_all(question, recipe, space, aim, is_enough=bool)
    candidates = [each for one in weighed for each in one.fitting]
    within = [each for each in candidates if abs(each.deviation) <= question.goal.tolerance]
    return best(within or candidates, aim) if candidates else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """Every candidate of one layout that fits, and how many were priced to find them."""

    layout: Layout
    fitting: tuple[Candidate, ...]
    num_priced: int


def _weigh_all(
    question: Question,
    recipe: Recipe,
    space: SearchSpace,
    aim: Aim,
    *,
    is_enough: Callable[[list[Candidate]], bool],
) -> list[Weighed]:
    """Weigh every layout, fewest devices first.

    With ``stop_at_first_fit`` it ends where ``is_enough`` holds of the candidates on so many
    devices that are within tolerance and meet the deadline.
    """
    aim.check(knows_rates=bool(question.gpu.bf16_tflops) and question.pricer.counts_activations)
    target = check_target(goal=question.goal, space=space)
    weighed: list[Weighed] = []
    for cluster in clusters(space):
        found = [
            _weigh(question, space, layout, target)
            for layout in layouts(recipe=recipe, space=space, cluster=cluster)
        ]
        weighed += found
        if space.stop_at_first_fit and is_enough(
            [
                each
                for one in found
                for each in one.fitting
                if abs(each.deviation) <= question.goal.tolerance
                and not aim.seconds_late(each.seconds_per_token, each.micro_batch)
            ]
        ):
            break
    if not weighed:
        raise SpecError(_no_layout_message(recipe, space))
    return weighed


def _is_confirmed(
    question: Question, space: SearchSpace, aim: Aim, candidates: list[Candidate]
) -> bool:
    """Return whether any candidate holds once its memory was played."""
    return any(True for _ in best_plans(question, space, candidates, aim, 1))


def _weigh(question: Question, space: SearchSpace, layout: Layout, target: int | None) -> Weighed:
    """Price and time every (micro-batch, K) of one layout, micro-batches ascending while they fit.

    Memory never falls as the micro-batch grows, so the first that does not fit with the fewest K
    ends it.
    """
    pricer, num_ranks = question.pricer, layout.cluster.num_ranks
    usable, seq_len = question.gpu.usable_bytes, space.seq_len
    smallest = space.micro_batch or 1
    largest = largest_micro_batch(space=space, num_ranks=num_ranks, target=target)
    if not pricer.counts_activations and space.micro_batch is None:
        largest = 1  # States alone cannot tell a larger micro-batch from a smaller one.
    price = pricer.quick(recipe=layout.recipe, cluster=layout.cluster, seq_len=seq_len)
    timer = pricer.timer(recipe=layout.recipe, cluster=layout.cluster, seq_len=seq_len)
    fitting: list[Candidate] = []
    num_priced = 0
    for micro_batch in range(smallest, largest + 1):
        any_fits = False
        for accum_steps in accum_choices(
            space=space, micro_batch=micro_batch, num_ranks=num_ranks, target=target
        ):
            num_priced += 1
            if price.bound_bytes(micro_batch, accum_steps) > usable:
                continue
            any_fits = True
            tokens = micro_batch * accum_steps * num_ranks * seq_len
            fitting.append(
                Candidate(
                    layout,
                    micro_batch,
                    accum_steps,
                    deviation(tokens=tokens, target=target),
                    timer.seconds(micro_batch, accum_steps) / tokens if timer else None,
                    price.peak_bytes(micro_batch, accum_steps),
                )
            )
        if not any_fits and price.bound_bytes(micro_batch, 1) > usable:
            break
    return Weighed(layout=layout, fitting=tuple(fitting), num_priced=num_priced)


def _late(aim: Aim, best_plan: Plan) -> Iterator[Caveat]:
    rate = best_plan.tokens_per_second
    late = aim.seconds_late(None if rate is None else 1 / rate, best_plan.batch.micro_batch)
    if not late:
        return
    if aim.objective is Objective.TIME:
        text = (
            f"No plan that fits and is within tolerance meets the deadline; the fastest is "
            f"{format_seconds(late)} late."
        )
    else:
        text = (
            f"The best plan by {aim.objective} is {format_seconds(late)} late; --optimize time "
            "puts the deadline first."
        )
    yield Caveat(code="deadline-missed", text=text)


def _closest(question: Question, space: SearchSpace, tried: Sequence[Layout]) -> Plan:
    """Return the candidate with the least excess: every layout at its smallest micro-batch."""
    target = question.goal.target_in_tokens(space.seq_len)
    smallest: tuple[int, Layout, Batch] | None = None
    for layout in tried:
        micro_batch = space.micro_batch or 1
        num_ranks = layout.cluster.num_ranks
        choices = accum_choices(
            space=space, micro_batch=micro_batch, num_ranks=num_ranks, target=target
        )
        wanted = (target or 0) / (micro_batch * num_ranks * space.seq_len)
        accum_steps = min(choices, key=partial(_distance, wanted))
        price = question.pricer.quick(
            recipe=layout.recipe, cluster=layout.cluster, seq_len=space.seq_len
        )
        peak = price.peak_bytes(micro_batch, accum_steps)
        if smallest is None or peak < smallest[0]:
            smallest = (peak, layout, batch_of(space, layout, micro_batch, accum_steps))
    assert smallest is not None
    _, layout, batch = smallest
    return assemble(question=question, layout=layout, batch=batch)


def _distance(wanted: float, accum_steps: int) -> float:
    return abs(accum_steps - wanted)


def _no_layout_message(recipe: Recipe, space: SearchSpace) -> str:
    refused = dict.fromkeys(
        text
        for cluster in clusters(space)
        for layout in layouts(
            recipe=recipe, space=replace(space, refusals=nothing_refused), cluster=cluster
        )
        for text in space.refusals(layout.recipe, cluster.num_ranks)
    )
    if refused:
        return f"None of the values asked for can be run: {'; '.join(refused)}."
    nodes = max(cluster.num_nodes for cluster in clusters(space))
    shardings = ", ".join(space.shardings)
    offloads = ", ".join(space.offloads)
    return (
        f"No combination of sharding ({shardings}) and offload ({offloads}) is possible on "
        f"{nodes} node{'s' if nodes > 1 else ''}: offloading the optimizer "
        "needs zero1 to zero3, offloading parameters zero3 or FSDP, and fsdp-hybrid several nodes."
    )
