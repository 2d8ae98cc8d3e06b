"""What would make a plan that fits faster, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from batchplan.planner.assemble import Question
from batchplan.planner.candidates import FSDP, MICRO_BATCH_CAP, SearchSpace
from batchplan.planner.plan import Plan, Rescue, Semantics
from batchplan.planner.pricing import QuickPrices
from batchplan.planner.rescue.attempt import MOST_RESCUES, Attempt, begin
from batchplan.planner.rescue.changes import (
    SHARDING_LADDERS,
    Apply,
    Change,
    apply_all,
    as_run,
    multiply_devices,
    passes,
    stronger,
    switch,
)
from batchplan.planner.rescue.probe import Probe
from batchplan.spec import Attention, Checkpointing, Loss, Method, Offload, Sharding

FASTER = 0.03
"""Less time than this share saved is less than the clock can tell."""
MICRO_BATCH = "micro-batch"
MOST_CONFIRMED = 4
"""Micro-batches of one knob that are played through the allocator."""


def _keep(attempt: Attempt) -> Attempt:
    return attempt


def _gather_less(target: Sharding) -> Apply:
    """Split fewer states: the way back on a ladder."""

    def apply(attempt: Attempt) -> Attempt | None:
        current = attempt.recipe.sharding
        for rungs in SHARDING_LADDERS:
            if {current, target} <= set(rungs) and rungs.index(target) < rungs.index(current):
                return attempt.change({"sharding": target.value}, sharding=target)
        return None

    return apply


def _defer(attempt: Attempt) -> Attempt | None:
    is_fsdp = attempt.recipe.sharding in FSDP and attempt.cluster.num_ranks > 1
    return switch("sync_each_batch", on=False)(attempt) if is_fsdp else None


_LESS_RECOMPUTE = tuple(reversed(Checkpointing))
_LESS_OFFLOAD = tuple(reversed(Offload))

SPEEDUPS: tuple[Change, ...] = (
    Change(knob=MICRO_BATCH, text="another micro-batch", apply=_keep),
    *(
        Change(
            knob="checkpointing",
            text=text,
            apply=stronger("checkpointing", target, _LESS_RECOMPUTE),
            semantics=Semantics.SAME,
            reaches=passes,
        )
        for text, target in (
            ("keep all but attention scores for the backward pass", Checkpointing.SELECTIVE),
            ("keep every activation for the backward pass", Checkpointing.NONE),
        )
    ),
    Change(
        knob="attention",
        text="attention without whole score matrices",
        apply=stronger("attention", Attention.SDPA, tuple(Attention)),
        reaches=passes,
    ),
    Change(
        knob="loss",
        text="logits never whole: loss and head in one kernel",
        apply=stronger("loss", Loss.FUSED, tuple(Loss)),
        reaches=passes,
    ),
    Change(
        knob="sync-each-batch",
        text="reduce gradients once a step, kept whole till then",
        apply=_defer,
    ),
    *(
        Change(knob="sharding", text="gather and reduce less", apply=_gather_less(target))
        for target in (
            Sharding.ZERO2,
            Sharding.ZERO1,
            Sharding.DDP,
            Sharding.FSDP_HYBRID,
            Sharding.FSDP_GRAD_OP,
        )
    ),
    *(
        Change(
            knob="offload",
            text=text,
            apply=stronger("offload", target, _LESS_OFFLOAD),
        )
        for text, target in (
            ("keep parameters on the device", Offload.OPTIMIZER),
            ("keep all states on the device", Offload.NONE),
        )
    ),
    Change(
        knob="method",
        text="keep the base in 16 bits",
        apply=stronger("method", Method.LORA, (Method.QLORA, Method.LORA)),
        semantics=Semantics.BASE,
        reaches=passes,
    ),
    Change(knob="devices", text="twice the devices", apply=multiply_devices(2)),
)


def speedups(
    *, question: Question, space: SearchSpace, start: Plan, traces: int = 0
) -> tuple[Rescue, ...]:
    """Return single changes that make a plan faster and still fit, fastest first.

    Each is run at the micro-batch that suits it best, with K for the same tokens a step; of one
    knob only the best row is returned. Nothing is returned where rates are unknown.

    Args:
        question: what was asked.
        space: what was searched; those profiles are at hand.
        start: the plan to speed up.
        traces: most traces that may be made for it; with 0 the answer takes a fraction of a second.
    """
    if start.step_time is None:
        return ()
    here = begin(question=question, space=space, start=start)
    probe = Probe(here, space, traces=traces)
    now = start.step_time.mid / start.batch.global_batch_tokens
    best: dict[str, Rescue] = {}
    for change in SPEEDUPS:
        applied = apply_all(here, [change])
        attempt = None if applied is None else as_run(applied)
        if attempt is None or (not probe.is_traced(attempt) and probe.price(attempt) is None):
            continue
        # What another micro-batch gives by itself is no merit of a row that brings one along.
        resized = _ratio(best.get(MICRO_BATCH))
        rescue = _fastest(attempt, change, now * (1 - FASTER), resized)
        if rescue is not None and _ratio(rescue) < _ratio(best.get(change.knob)):
            best[change.knob] = rescue
    return tuple(sorted(best.values(), key=_ratio)[:MOST_RESCUES])


def _ratio(rescue: Rescue | None) -> float:
    return 1.0 if rescue is None or rescue.time_ratio is None else rescue.time_ratio


def _fastest(attempt: Attempt, change: Change, enough: float, resized: float) -> Rescue | None:
    """Return the offer at the fastest micro-batch that is confirmed to fit, if fast enough.

    ``enough`` is in seconds a token, and ``resized`` the share of it for another micro-batch.
    What the quick price misses where confirmation fails is taken to be missed in proportion by
    smaller ones, so that few are confirmed in vain.
    """
    pricer, recipe, cluster = attempt.question.pricer, attempt.recipe, attempt.cluster
    timer = pricer.timer(recipe=recipe, cluster=cluster, seq_len=attempt.seq_len)
    if timer is None:
        return None
    quick = pricer.quick(recipe=recipe, cluster=cluster, seq_len=attempt.seq_len)

    def bound_bytes(size: Attempt) -> int:
        return quick.bound_bytes(size.micro_batch, size.batch.accum_steps)

    def seconds_per_token(size: Attempt) -> float:
        batch = size.batch
        return timer.seconds(batch.micro_batch, batch.accum_steps) / batch.global_batch_tokens

    def is_enough(size: Attempt) -> bool:
        is_same = size.micro_batch == attempt.micro_batch
        return seconds_per_token(size) <= enough * (1.0 if is_same else resized)

    usable = attempt.usable_bytes
    sizes = sorted(filter(is_enough, _sizes(attempt, quick)), key=seconds_per_token)
    for _ in range(MOST_CONFIRMED):
        if not sizes:
            return None
        memory = sizes[0].confirm()
        if memory.bound_bytes <= usable:
            return sizes[0].rescue([change], memory)
        allowed = bound_bytes(sizes[0]) * usable / memory.bound_bytes
        sizes = [size for size in sizes if bound_bytes(size) <= allowed]
    return None


def _sizes(attempt: Attempt, quick: QuickPrices) -> Iterator[Attempt]:
    """Yield the attempt at every micro-batch that the quick price lets in and keeps the batch."""
    start = attempt.start.plan.batch
    each = attempt.cluster.num_ranks * attempt.seq_len
    largest = max(start.micro_batch, attempt.tokens // each)
    for micro_batch in range(min(largest, MICRO_BATCH_CAP), 0, -1):
        if quick.bound_bytes(micro_batch, 1) > attempt.usable_bytes:
            continue  # and more passes need no less
        is_other = micro_batch != start.micro_batch
        changed = attempt.change({MICRO_BATCH: str(micro_batch)}) if is_other else attempt
        resized = replace(changed, micro_batch=micro_batch)
        fits = quick.bound_bytes(micro_batch, resized.batch.accum_steps) <= attempt.usable_bytes
        if fits and resized.keeps_the_batch:
            yield resized
