"""Brute force over every valid candidate; what fits is ranked by predicted time per token.

Two facts keep it quick. Memory never falls as the micro-batch or K grows, so the largest
micro-batch that fits is found by bisection. A step timer is made once per layout. Whatever is
recommended is priced again exactly as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from batchplan.errors import SpecError
from batchplan.learning import PublishedRun
from batchplan.memory import Estimate
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
)
from batchplan.planner.plan import Answer, Plan
from batchplan.planner.pricing import Pricer
from batchplan.planner.rescue import ladder, rescues
from batchplan.spec import Batch, BatchGoal, Gpu, ModelInfo, Recipe

TIE = 0.005
"""Predicted times within half a percent are equal: the model is not better than that."""
DEFAULT_LIMIT = 5


def search(
    *,
    pricer: Pricer,
    recipe: Recipe,
    space: SearchSpace,
    goal: BatchGoal,
    gpu: Gpu,
    model: ModelInfo,
    runs: Sequence[PublishedRun] = (),
    base_lr: float | None = None,
    base_batch: float | None = None,
    base_batch_tokens: float | None = None,
    limit: int = DEFAULT_LIMIT,
) -> Answer:
    """Return the best plans that fit, or what would make one fit.

    Method, numerics and optimizer stay as the recipe says.

    Args:
        pricer: ``ProfilePricer`` for a model, ``StatesPricer`` for ``--params``.
        recipe: what is trained and how; its sharding, checkpointing and offload are searched.
        space: the values of each axis, pins included.
        goal: tokens or sequences per optimizer step, and the tolerance.
        gpu: the device, one per rank.
        model: names the model; its width and reach are used where known.
        runs: published runs, for the learning rate.
        base_lr: the user's learning rate, at ``base_batch`` sequences or ``base_batch_tokens``.
        base_batch: see ``base_lr``.
        base_batch_tokens: see ``base_lr``.
        limit: most plans to return, one for each (sharding, checkpointing, offload, devices).

    Raises:
        SpecError: when target, pins and space admit no candidate at all.
    """
    question = Question(
        pricer=pricer,
        goal=goal,
        gpu=gpu,
        model=model,
        runs=tuple(runs),
        base_lr=base_lr,
        base_batch=base_batch,
        base_batch_tokens=base_batch_tokens,
        assumes_nodes=space.num_nodes is None,
        assumes_inter_node=space.inter_node_gb_per_s is None,
    )
    return _answer(question=question, recipe=recipe, space=space, limit=limit)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """One (layout, micro-batch, K) believed to fit."""

    layout: Layout
    micro_batch: int
    accum_steps: int
    deviation: float
    seconds_per_token: float | None

    @property
    def preference(self) -> tuple[object, ...]:
        """Among equals in time: nearer the target, simpler, fewer K, smaller batch."""
        return (
            abs(self.deviation),
            self.layout.complexity,
            self.accum_steps,
            self.micro_batch * self.accum_steps * self.layout.cluster.num_ranks,
        )

    @property
    def proxy(self) -> tuple[object, ...]:
        """Order when rates are unknown: more devices, less recomputation, larger micro-batch."""
        sharding, offload, checkpointing, sync = self.layout.complexity
        return (
            -self.layout.cluster.num_ranks,
            checkpointing,
            offload,
            -self.micro_batch,
            self.accum_steps,
            abs(self.deviation),
            sharding,
            sync,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tried:
    """A layout, and every (micro-batch, K) on it that was priced or timed."""

    layout: Layout
    weighed: set[tuple[int, int]] = field(default_factory=set)


def _answer(*, question: Question, recipe: Recipe, space: SearchSpace, limit: int) -> Answer:
    target = check_target(goal=question.goal, space=space)
    candidates: list[Candidate] = []
    tried: list[Tried] = []
    for cluster in clusters(space):
        for layout in layouts(recipe=recipe, space=space, cluster=cluster):
            tried.append(Tried(layout=layout))
            candidates += _fitting(question, space, tried[-1], target)
        reached = any(abs(each.deviation) <= question.goal.tolerance for each in candidates)
        if space.stop_at_first_fit and reached:
            break
    if not tried:
        raise SpecError(_no_layout_message(space))
    caveats = tuple(search_caveats(question=question, recipe=recipe))
    plans = tuple(_best(question, space, candidates, limit))
    if plans:
        return Answer(
            plans=plans,
            closest=None,
            ladder=(),
            rescues=(),
            searched=sum(len(each.weighed) for each in tried),
            caveats=caveats,
        )
    closest = _closest(question, space, tried, target)
    return Answer(
        plans=(),
        closest=closest,
        ladder=ladder(question=question, space=space, start=closest),
        rescues=rescues(question=question, space=space, start=closest),
        searched=sum(len(each.weighed) for each in tried),
        caveats=caveats,
    )


def _fitting(
    question: Question, space: SearchSpace, tried: Tried, target: int | None
) -> Iterator[Candidate]:
    """Yield candidates of one layout, micro-batches ascending while they fit."""
    layout = tried.layout
    pricer, num_ranks = question.pricer, layout.cluster.num_ranks
    largest = largest_micro_batch(space=space, num_ranks=num_ranks, target=target)
    smallest = space.micro_batch or 1
    if not pricer.counts_activations and space.micro_batch is None:
        largest = 1  # States alone cannot tell a larger micro-batch from a smaller one.
    reach: dict[bool, int] = {}

    def fits(accum_steps: int, micro_batch: int) -> bool:
        tried.weighed.add((micro_batch, accum_steps))
        bill = _price(question, space, layout, micro_batch, accum_steps)
        return bill.bound_bytes <= question.gpu.usable_bytes

    def largest_fit(*, accumulates: bool) -> int:
        if accumulates not in reach:
            reach[accumulates] = _bisect(partial(fits, 1 + accumulates), smallest, largest)
        return reach[accumulates]

    timer = pricer.timer(recipe=layout.recipe, cluster=layout.cluster, seq_len=space.seq_len)
    for micro_batch in range(smallest, largest + 1):
        if micro_batch > largest_fit(accumulates=False):
            return
        for accum_steps in accum_choices(
            space=space, micro_batch=micro_batch, num_ranks=num_ranks, target=target
        ):
            if accum_steps > 1 and micro_batch > largest_fit(accumulates=True):
                continue
            tokens = micro_batch * accum_steps * num_ranks * space.seq_len
            tried.weighed.add((micro_batch, accum_steps))
            yield Candidate(
                layout=layout,
                micro_batch=micro_batch,
                accum_steps=accum_steps,
                deviation=deviation(tokens=tokens, target=target),
                seconds_per_token=(
                    None if timer is None else timer.seconds(micro_batch, accum_steps) / tokens
                ),
            )


def _bisect(fits: Callable[[int], bool], smallest: int, largest: int) -> int:
    """Return the largest size that fits, or ``smallest - 1``; what fits is a prefix."""
    if not fits(smallest):
        return smallest - 1
    low, step = smallest, 1
    while low < largest:
        probe = min(largest, low + step)
        if not fits(probe):
            break
        low, step = probe, 2 * step
    else:
        return largest
    high = probe
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _price(
    question: Question, space: SearchSpace, layout: Layout, micro_batch: int, accum_steps: int
) -> Estimate:
    return question.pricer.price(
        recipe=layout.recipe,
        batch=_batch(space, layout, micro_batch, accum_steps),
        cluster=layout.cluster,
    )


def _batch(space: SearchSpace, layout: Layout, micro_batch: int, accum_steps: int) -> Batch:
    return Batch(
        micro_batch=micro_batch,
        accum_steps=accum_steps,
        num_ranks=layout.cluster.num_ranks,
        seq_len=space.seq_len,
    )


def _best(
    question: Question, space: SearchSpace, candidates: list[Candidate], limit: int
) -> Iterator[Plan]:
    """Yield plans best first, one for each layout key.

    Candidates within tolerance alone count; without any, those nearest the target.
    """
    remaining = candidates
    num_plans = 0
    while remaining and num_plans < limit:
        within = [each for each in remaining if abs(each.deviation) <= question.goal.tolerance]
        if not within:
            if num_plans:
                return
            nearest = min(abs(each.deviation) for each in remaining)
            within = [each for each in remaining if abs(each.deviation) == nearest]
        outside = abs(within[0].deviation) > question.goal.tolerance
        while within and num_plans < limit:
            best = _first(within)
            batch = _batch(space, best.layout, best.micro_batch, best.accum_steps)
            memory = question.pricer.confirm(
                recipe=best.layout.recipe, batch=batch, cluster=best.layout.cluster
            )
            if memory.bound_bytes > question.gpu.usable_bytes:
                reach = _reach(question, space, best, memory)
                within = [each for each in within if not _is_beyond(each, best, reach)]
                remaining = [each for each in remaining if not _is_beyond(each, best, reach)]
                continue
            yield assemble(
                question=question,
                layout=best.layout,
                batch=batch,
                memory=memory,
            )
            num_plans += 1
            key = best.layout.key
            within = [each for each in within if each.layout.key != key]
            remaining = [each for each in remaining if each.layout.key != key]
        if outside and num_plans:
            return


def _reach(question: Question, space: SearchSpace, failed: Candidate, memory: Estimate) -> int:
    """Return the largest micro-batch below ``failed`` that is confirmed on its layout; 0 if none.

    What the quick price missed where it failed is taken to grow in proportion, which leads close;
    from there it is one step at a time.
    """
    layout, accum_steps, usable = failed.layout, failed.accum_steps, question.gpu.usable_bytes

    def guess(bound_bytes: int, failing: int) -> int:
        allowed = usable * _quick_bound(question, space, layout, failing, accum_steps) / bound_bytes
        return _bisect(
            lambda size: _quick_bound(question, space, layout, size, accum_steps) <= allowed,
            1,
            failing - 1,
        )

    low, high = 0, failed.micro_batch
    probe = guess(memory.bound_bytes, high)
    while high - low > 1:
        probe = min(max(probe, low + 1), high - 1)
        bound = question.pricer.confirm(
            recipe=layout.recipe,
            batch=_batch(space, layout, probe, accum_steps),
            cluster=layout.cluster,
        ).bound_bytes
        if bound <= usable:
            low, probe = probe, probe + 1
        else:
            high, probe = probe, guess(bound, probe)
    return low


def _quick_bound(
    question: Question, space: SearchSpace, layout: Layout, micro_batch: int, accum_steps: int
) -> int:
    return _price(question, space, layout, micro_batch, accum_steps).bound_bytes


def _is_beyond(each: Candidate, failed: Candidate, reach: int) -> bool:
    """Whether ``each`` needs at least as much as what failed, or is out of reach like it."""
    return (
        each.layout is failed.layout
        and each.micro_batch > reach
        and (each.accum_steps > 1) >= (failed.accum_steps > 1)
    )


def _first(candidates: list[Candidate]) -> Candidate:
    """Return the preferred one of those within ``TIE`` of the fastest."""
    times = [each.seconds_per_token for each in candidates]
    if any(seconds is None for seconds in times):
        return min(candidates, key=lambda each: each.proxy)
    fastest = min(seconds for seconds in times if seconds is not None)
    equals = [
        each
        for each, seconds in zip(candidates, times, strict=True)
        if seconds is not None and seconds <= fastest * (1 + TIE)
    ]
    return min(equals, key=lambda each: each.preference)


def _closest(
    question: Question, space: SearchSpace, tried: list[Tried], target: int | None
) -> Plan:
    """Return the candidate with the least excess: every layout at its smallest micro-batch."""
    smallest: tuple[int, Layout, Batch] | None = None
    for each in tried:
        layout = each.layout
        micro_batch = space.micro_batch or 1
        num_ranks = layout.cluster.num_ranks
        choices = accum_choices(
            space=space, micro_batch=micro_batch, num_ranks=num_ranks, target=target
        )
        wanted = (target or 0) / (micro_batch * num_ranks * space.seq_len)
        accum_steps = min(choices, key=partial(_distance, wanted))
        each.weighed.add((micro_batch, accum_steps))
        batch = _batch(space, layout, micro_batch, accum_steps)
        memory = question.pricer.price(recipe=layout.recipe, batch=batch, cluster=layout.cluster)
        if smallest is None or memory.peak_bytes < smallest[0]:
            smallest = (memory.peak_bytes, layout, batch)
    assert smallest is not None
    _, layout, batch = smallest
    return assemble(question=question, layout=layout, batch=batch)


def _distance(wanted: float, accum_steps: int) -> float:
    return abs(accum_steps - wanted)


def _no_layout_message(space: SearchSpace) -> str:
    nodes = max(cluster.num_nodes for cluster in clusters(space))
    shardings = ", ".join(space.shardings)
    offloads = ", ".join(space.offloads)
    return (
        f"No combination of sharding ({shardings}) and offload ({offloads}) is possible on "
        f"{nodes} node{'s' if nodes > 1 else ''}: offloading the optimizer "
        "needs zero1 to zero3, offloading parameters zero3 or FSDP, and fsdp-hybrid several nodes."
    )
