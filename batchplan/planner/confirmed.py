"""From candidates that the quick price lets pass to plans whose memory was played and holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from batchplan.memory import Estimate
from batchplan.planner.assemble import Question, assemble
from batchplan.planner.candidates import Layout, SearchSpace
from batchplan.planner.plan import Plan
from batchplan.planner.ranking import Aim, Candidate, best, pareto_front
from batchplan.spec import Batch, Objective

MOST_ON_FRONT = 12
MOST_PLAYED = 32
"""Peaks that are played to find the least one; of very many layouts, the rest is left out."""


def best_plans(
    question: Question,
    space: SearchSpace,
    candidates: Sequence[Candidate],
    aim: Aim,
    limit: int,
) -> Iterator[Plan]:
    """Yield plans best first, one for each layout key.

    Candidates within tolerance alone count; without any, those nearest the target.
    """
    remaining = list(candidates)
    played: list[Candidate] = []
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
            first = best(within, aim)
            memory = _confirm(question, space, first)
            if memory.bound_bytes > question.gpu.usable_bytes:
                reach = _reach(question, space, first, memory)
                within = [each for each in within if not _is_beyond(each, first, reach)]
                remaining = [each for each in remaining if not _is_beyond(each, first, reach)]
                continue
            if aim.objective is Objective.MEMORY and memory.peak_bytes != first.peak_bytes:
                # The quick price is a lower bound, so what is still first with its real peak is.
                known = first._replace(peak_bytes=memory.peak_bytes)
                within = [known if each is first else each for each in within]
                remaining = [known if each is first else each for each in remaining]
                played.append(known)
                if len(played) >= max(MOST_PLAYED, 2 * limit):
                    within = [each for each in within if each in played]
                    remaining = within
                continue
            yield _plan(question, space, first, memory)
            num_plans += 1
            key = first.layout.key
            within = [each for each in within if each.layout.key != key]
            remaining = [each for each in remaining if each.layout.key != key]
        if outside and num_plans:
            return


def front_plans(
    question: Question, space: SearchSpace, candidates: Sequence[Candidate]
) -> Iterator[Plan]:
    """Yield what nothing else beats in time, memory and devices at once, fastest first.

    Of a long front, ``MOST_ON_FRONT`` plans spread over it; those whose memory does not hold, or is
    beaten once it was played, are left out.
    """
    allowed = max(question.goal.tolerance, min(abs(each.deviation) for each in candidates))
    front = list(pareto_front([each for each in candidates if abs(each.deviation) <= allowed]))
    last = len(front) - 1
    shown: list[Plan] = []
    picked = {round(last * at / (MOST_ON_FRONT - 1)) for at in range(MOST_ON_FRONT)}
    for position in sorted(picked):
        memory = _confirm(question, space, front[position])
        num_ranks = front[position].num_ranks
        if memory.bound_bytes <= question.gpu.usable_bytes and all(
            memory.peak_bytes < other.memory.peak_bytes or num_ranks < other.batch.num_ranks
            for other in shown
        ):
            shown.append(_plan(question, space, front[position], memory))
            yield shown[-1]


def batch_of(space: SearchSpace, layout: Layout, micro_batch: int, accum_steps: int) -> Batch:
    """Return the batch of one candidate."""
    return Batch(
        micro_batch=micro_batch,
        accum_steps=accum_steps,
        num_ranks=layout.cluster.num_ranks,
        seq_len=space.seq_len,
    )


def _plan(question: Question, space: SearchSpace, each: Candidate, memory: Estimate) -> Plan:
    batch = batch_of(space, each.layout, each.micro_batch, each.accum_steps)
    return assemble(question=question, layout=each.layout, batch=batch, memory=memory)


def _confirm(question: Question, space: SearchSpace, each: Candidate) -> Estimate:
    return question.pricer.confirm(
        recipe=each.layout.recipe,
        batch=batch_of(space, each.layout, each.micro_batch, each.accum_steps),
        cluster=each.layout.cluster,
    )


def _reach(question: Question, space: SearchSpace, failed: Candidate, memory: Estimate) -> int:
    """Return the largest micro-batch below ``failed`` that is confirmed on its layout; 0 if none.

    What the quick price missed where it failed is taken to grow in proportion, which leads close;
    from there it is one step at a time.
    """
    layout, usable = failed.layout, question.gpu.usable_bytes
    price = question.pricer.quick(
        recipe=layout.recipe, cluster=layout.cluster, seq_len=space.seq_len
    )

    def quick(size: int) -> int:
        return price.bound_bytes(size, failed.accum_steps)

    def guess(bound_bytes: int, failing: int) -> int:
        allowed = usable * quick(failing) / bound_bytes
        return largest_that(lambda size: quick(size) <= allowed, 1, failing - 1)

    low, high = 0, failed.micro_batch
    probe = guess(memory.bound_bytes, high)
    while high - low > 1:
        probe = min(max(probe, low + 1), high - 1)
        bound = _confirm(question, space, failed._replace(micro_batch=probe)).bound_bytes
        if bound <= usable:
            low, probe = probe, probe + 1
        else:
            high, probe = probe, guess(bound, probe)
    return low


def largest_that(fits: Callable[[int], bool], smallest: int, largest: int) -> int:
    """Return the largest size that fits, or ``smallest - 1``; what fits is a prefix."""
    if largest < smallest or not fits(smallest):
        return smallest - 1
    low, high = smallest, largest + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _is_beyond(each: Candidate, failed: Candidate, reach: int) -> bool:
    """Whether ``each`` needs at least as much as what failed, or is out of reach like it."""
    return (
        each.layout is failed.layout
        and each.micro_batch > reach
        and (each.accum_steps > 1) >= (failed.accum_steps > 1)
    )
