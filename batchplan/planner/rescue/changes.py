"""The table of changes: what may be done differently, ordered by how little it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from batchplan.memory import Moment
from batchplan.memory.activations import HEAD
from batchplan.memory.setting import OPTIMIZER_STEP
from batchplan.planner.assemble import Question
from batchplan.planner.candidates import FSDP, OFFLOADS
from batchplan.planner.plan import Semantics
from batchplan.planner.rescue.attempt import Attempt
from batchplan.spec import (
    MAX_RANKS,
    Attention,
    Checkpointing,
    Loss,
    Method,
    Numerics,
    Offload,
    Optimizer,
    OptimizerImpl,
    Sharding,
    nodes_for,
)
from batchplan.states.sharding import RULES

SHORTEST_SEQ_LEN = 128
"""Halving stops here: below, there is little left to train on."""

SHARDING_LADDERS: tuple[tuple[Sharding, ...], ...] = (
    (Sharding.DDP, Sharding.ZERO1, Sharding.ZERO2, Sharding.ZERO3),
    (Sharding.FSDP_GRAD_OP, Sharding.FSDP_HYBRID, Sharding.FSDP_FULL),
)
"""Each rung splits more states than the one before."""

Apply = Callable[[Attempt], Attempt | None]
"""None when it does not apply or changes nothing."""


def passes(moment: Moment) -> bool:
    """Whether it is an instant of a forward or backward pass."""
    return moment.phase != OPTIMIZER_STEP


def _head(moment: Moment) -> bool:
    return moment.stage == HEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row of the table."""

    knob: str
    """Rows of one knob exclude each other and are ordered weakest first."""
    text: str
    apply: Apply
    semantics: Semantics = Semantics.ROUNDING
    needs_activations: bool = False
    """Only matters where activations are counted."""
    reaches: Callable[[Moment], bool] | None = None
    """Instants that it can lower, for a change of activations that may need another trace; None
    for any other change."""


def stronger(field: str, target: object, order: tuple[object, ...]) -> Apply:
    """Set a field of the recipe where it stands further left in ``order``."""

    def apply(attempt: Attempt) -> Attempt | None:
        current = getattr(attempt.recipe, field)
        if current not in order or order.index(current) >= order.index(target):
            return None
        return attempt.change({field.replace("_", "-"): str(target)}, **{field: target})

    return apply


def switch(field: str, *, on: bool) -> Apply:
    """Turn a field of the recipe on or off."""

    def apply(attempt: Attempt) -> Attempt | None:
        if getattr(attempt.recipe, field) is on:
            return None
        return attempt.change({field.replace("_", "-"): "yes" if on else "no"}, **{field: on})

    return apply


def _checkpoint(target: Checkpointing) -> Apply:
    return stronger("checkpointing", target, tuple(Checkpointing))


def _sync(attempt: Attempt) -> Attempt | None:
    is_fsdp = attempt.recipe.sharding in FSDP and attempt.cluster.num_ranks > 1
    if not is_fsdp or attempt.batch.accum_steps == 1:
        return None
    return switch("sync_each_batch", on=True)(attempt)


def _micro_batch_of_one(attempt: Attempt) -> Attempt | None:
    if attempt.micro_batch == 1:
        return None
    return replace(attempt.change({"micro-batch": "1"}), micro_batch=1)


def _shard(target: Sharding) -> Apply:
    def apply(attempt: Attempt) -> Attempt | None:
        current = attempt.recipe.sharding
        is_higher = any(
            current in rungs and target in rungs and rungs.index(target) > rungs.index(current)
            for rungs in SHARDING_LADDERS
        )
        if not is_higher or attempt.cluster.num_ranks == 1:
            return None
        return attempt.change({"sharding": target.value}, sharding=target)

    return apply


def _offload(target: Offload, sharding: Sharding) -> Apply:
    """Offload ``target``; where the strategy cannot, move to ``sharding`` of the same family.

    The update on the host is DeepSpeed's own AdamW; bitsandbytes' kernels run on the device.
    """

    def apply(attempt: Attempt) -> Attempt | None:
        order = list(Offload)
        current = attempt.recipe.sharding
        if order.index(attempt.recipe.offload) >= order.index(target):
            return None
        if attempt.recipe.optimizer is not Optimizer.ADAMW:
            return None
        options, fields = {"offload": target.value}, {"offload": target}
        if target in OFFLOADS[current]:
            return attempt.change(options, **fields)
        if current in FSDP:
            return None
        return attempt.change({"sharding": sharding.value, **options}, sharding=sharding, **fields)

    return apply


def _eight_bit(attempt: Attempt) -> Attempt | None:
    if attempt.recipe.offload is not Offload.NONE:
        return None
    return stronger("optimizer", Optimizer.ADAMW_8BIT, (Optimizer.ADAMW, Optimizer.ADAMW_8BIT))(
        attempt
    )


def _halve_sequences(attempt: Attempt) -> Attempt | None:
    half = attempt.seq_len // 2
    if half < SHORTEST_SEQ_LEN:
        return None
    return replace(attempt.change({"seq-len": str(half)}), seq_len=half)


def multiply_devices(factor: int) -> Apply:
    """Train on so many times the devices, on as few nodes as they need."""

    def apply(attempt: Attempt) -> Attempt | None:
        ranks = factor * attempt.cluster.num_ranks
        if ranks > MAX_RANKS:
            return None
        nodes = nodes_for(ranks, at_least=attempt.cluster.num_nodes)
        options = {"devices": str(ranks)}
        if nodes != attempt.cluster.num_nodes:
            options["nodes"] = str(nodes)
        cluster = attempt.cluster.model_copy(update={"num_ranks": ranks, "num_nodes": nodes})
        return replace(attempt.change(options), cluster=cluster)

    return apply


def _use(larger: Question) -> Apply:
    def apply(attempt: Attempt) -> Attempt | None:
        return replace(attempt.change({"gpu": larger.gpu.name}), question=larger)

    return apply


SHARDED: dict[Sharding, Change] = {
    target: Change(knob="sharding", text=text, apply=_shard(target))
    for target, text in (
        (Sharding.ZERO1, "split optimizer states"),
        (Sharding.ZERO2, "split optimizer states and gradients"),
        (Sharding.ZERO3, "split all states"),
        (Sharding.FSDP_FULL, "split all states"),
    )
}
"""The rows of one knob, which offloading may bring along."""

# Ordered by how little they change: the same training first, other training last, money last.
# Left out because they save nothing: ``paged-adamw-8bit`` takes what ``adamw-8bit`` takes until
# memory runs short, and ``flash`` what ``sdpa`` takes, which never holds whole scores either.
CHANGES: tuple[Change, ...] = (
    Change(
        knob="allocator",
        text="the allocator grows segments in place",
        apply=switch("expandable_segments", on=True),
        semantics=Semantics.SAME,
        needs_activations=True,
    ),
    Change(
        knob="checkpointing",
        text="recompute attention scores in the backward pass",
        apply=_checkpoint(Checkpointing.SELECTIVE),
        semantics=Semantics.SAME,
        needs_activations=True,
        reaches=passes,
    ),
    Change(
        knob="checkpointing",
        text="recompute every layer in the backward pass",
        apply=_checkpoint(Checkpointing.FULL),
        semantics=Semantics.SAME,
        needs_activations=True,
        reaches=passes,
    ),
    Change(
        knob="optimizer-impl",
        text="fused optimizer kernels, without lists of temporaries",
        apply=stronger(
            "optimizer_impl",
            OptimizerImpl.FUSED,
            (OptimizerImpl.FOREACH, OptimizerImpl.FOR_LOOP, OptimizerImpl.FUSED),
        ),
        needs_activations=True,
    ),
    Change(
        knob="attention",
        text="attention without whole score matrices",
        apply=stronger("attention", Attention.SDPA, tuple(Attention)),
        needs_activations=True,
        reaches=passes,
    ),
    Change(
        knob="loss",
        text="logits and loss a chunk at a time",
        apply=stronger("loss", Loss.CHUNKED, tuple(Loss)),
        needs_activations=True,
        reaches=_head,
    ),
    Change(
        knob="loss",
        text="logits never whole: loss and head in one kernel",
        apply=stronger("loss", Loss.FUSED, tuple(Loss)),
        needs_activations=True,
        reaches=_head,
    ),
    Change(
        knob="sync-each-batch",
        text="reduce gradients after every micro-batch",
        apply=_sync,
        needs_activations=True,
    ),
    Change(
        knob="micro-batch",
        text="one sequence at a time, more accumulation: same global batch",
        apply=_micro_batch_of_one,
        needs_activations=True,
    ),
    *SHARDED.values(),
    Change(
        knob="offload",
        text="keep optimizer states in host memory",
        apply=_offload(Offload.OPTIMIZER, Sharding.ZERO2),
    ),
    Change(
        knob="offload",
        text="keep parameters and optimizer states in host memory",
        apply=_offload(Offload.PARAMS, Sharding.ZERO3),
    ),
    Change(
        knob="optimizer",
        text="optimizer states in 8 bits",
        apply=_eight_bit,
        semantics=Semantics.OPTIMIZER,
    ),
    Change(
        knob="seq-len",
        text="half the sequence length",
        apply=_halve_sequences,
        semantics=Semantics.SHORTER,
        needs_activations=True,
        reaches=passes,
    ),
    Change(
        knob="method",
        text="train LoRA adapters instead of all weights",
        apply=stronger("method", Method.LORA, tuple(Method)),
        semantics=Semantics.FEWER,
        needs_activations=True,
    ),
    Change(
        knob="method",
        text="4-bit weights under the adapters",
        apply=stronger("method", Method.QLORA, (Method.LORA, Method.QLORA)),
        semantics=Semantics.BASE,
        needs_activations=True,
    ),
    Change(
        knob="method",
        text="train LoRA adapters over 4-bit weights",
        apply=stronger("method", Method.QLORA, (Method.FULL, Method.QLORA)),
        semantics=Semantics.FEWER,
        needs_activations=True,
    ),
    *(
        Change(knob="devices", text=f"{word} the devices", apply=multiply_devices(factor))
        for word, factor in (("twice", 2), ("four times", 4), ("eight times", 8))
    ),
)


def changes_for(question: Question) -> tuple[Change, ...]:
    """Return the rows that can matter for a question, the larger devices it knows last."""
    larger = (
        Change(
            knob="gpu",
            text="a larger device",
            apply=_use(other),
            semantics=Semantics.SAME,
        )
        for other in question.larger
    )
    counts = question.pricer.counts_activations
    return tuple(change for change in (*CHANGES, *larger) if counts or not change.needs_activations)


def apply_all(begin: Attempt, changes: Iterable[Change]) -> Attempt | None:
    """Return the attempt with every change made, or None where one does not apply.

    Devices come first, as sharding needs several.
    """
    attempt = begin
    for change in sorted(changes, key=lambda each: each.knob != "devices"):
        changed = change.apply(attempt)
        if changed is None:
            return None
        attempt = changed
    return attempt


_WITHOUT_MASTERS = {
    Numerics.BF16_MASTER: Numerics.BF16,
    Numerics.FP16_MASTER: Numerics.FP16,
}
_WITH_MASTERS = {
    Numerics.BF16_AUTOCAST: Numerics.BF16_MASTER,
    Numerics.FP16_AUTOCAST: Numerics.FP16_MASTER,
}


def as_run(attempt: Attempt) -> Attempt | None:
    """Return the attempt as the trainer can run it, or None where it meets a new obstacle.

    What has to follow is said only where the user had given it.
    """
    question = attempt.question
    obstacles, assumed = question.obstacles, question.assumed
    start = attempt.start.plan
    known = set(obstacles(start.recipe, start.batch.num_ranks))
    for settings in _settings(attempt):
        told = {name: value.value for name, value in settings.items() if name not in assumed}
        settled = attempt.change(told, **settings)
        settled = replace(
            settled, recipe=question.realise(settled.recipe, settled.cluster.num_ranks > 1)
        )
        if known.issuperset(obstacles(settled.recipe, settled.cluster.num_ranks)):
            return settled
    return None


def _settings(attempt: Attempt) -> Iterator[dict[str, StrEnum]]:
    """Yield what may have to follow: DeepSpeed keeps fp32 copies of weights, adapters need none.

    Numerics that nobody gave follow a new method first, as they would if it were asked for.
    """
    recipe, is_assumed = attempt.recipe, "numerics" in attempt.question.assumed
    is_new = recipe.method is not attempt.start.plan.recipe.method
    adapts = recipe.method is not Method.FULL
    numerics = (_WITHOUT_MASTERS if adapts else _WITH_MASTERS).get(recipe.numerics)
    follows = adapts and is_new and is_assumed
    if not follows:
        yield {}
    if numerics is not None:
        yield {"numerics": numerics}
        if adapts:
            splits = RULES[recipe.sharding].weights and attempt.cluster.num_ranks > 1
            sharding = Sharding.FSDP_FULL if splits else Sharding.DDP
            yield {"numerics": numerics, "sharding": sharding}
    if follows:
        yield {}
