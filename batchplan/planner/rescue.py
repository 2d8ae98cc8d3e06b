"""What would make it fit: a table of changes, least first, each really priced.

A change is offered only if it turns the answer from no to yes; of several strengths of one knob,
only the weakest that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product

from batchplan.errors import TraceError
from batchplan.planner.assemble import Question, assemble
from batchplan.planner.candidates import FSDP, OFFLOADS, Layout, SearchSpace, between_nodes
from batchplan.planner.plan import Plan, Rescue
from batchplan.spec import (
    MAX_ACCUM_STEPS,
    MAX_RANKS,
    Batch,
    Checkpointing,
    Cluster,
    Method,
    Offload,
    Recipe,
    Sharding,
    nodes_for,
)

MOST_RESCUES = 6
MOST_CHANGES = 3
SHORTEST_SEQ_LEN = 128
"""Halving stops here: below, there is little left to train on."""

SHARDING_LADDERS: tuple[tuple[Sharding, ...], ...] = (
    (Sharding.DDP, Sharding.ZERO1, Sharding.ZERO2, Sharding.ZERO3),
    (Sharding.FSDP_GRAD_OP, Sharding.FSDP_HYBRID, Sharding.FSDP_FULL),
)
"""Each rung splits more states than the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A configuration under repair, and the options changed so far."""

    recipe: Recipe
    cluster: Cluster
    micro_batch: int
    seq_len: int
    changed: tuple[tuple[str, str], ...] = ()

    def change(self, options: dict[str, str], **fields: object) -> Attempt:
        """Return a copy with fields of the recipe changed, remembering the options."""
        return replace(
            self,
            recipe=self.recipe.model_copy(update=fields),
            changed=tuple({**dict(self.changed), **options}.items()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row of the table."""

    knob: str
    """Rows of one knob exclude each other and are ordered weakest first."""
    text: str
    apply: Callable[[Attempt], Attempt | None]
    """None when it does not apply or changes nothing."""
    needs_activations: bool = False
    """Only matters where activations are counted."""
    changes_method: bool = False


def _checkpoint(attempt: Attempt) -> Attempt | None:
    if attempt.recipe.checkpointing is Checkpointing.FULL:
        return None
    return attempt.change({"checkpointing": "full"}, checkpointing=Checkpointing.FULL)


def _micro_batch_of_one(attempt: Attempt) -> Attempt | None:
    if attempt.micro_batch == 1:
        return None
    return replace(attempt.change({"micro-batch": "1"}), micro_batch=1)


def _shard(target: Sharding) -> Callable[[Attempt], Attempt | None]:
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


def _offload(target: Offload, sharding: Sharding) -> Callable[[Attempt], Attempt | None]:
    """Offload ``target``; where the strategy cannot, move to ``sharding`` of the same family."""

    def apply(attempt: Attempt) -> Attempt | None:
        order = list(Offload)
        current = attempt.recipe.sharding
        if order.index(attempt.recipe.offload) >= order.index(target):
            return None
        options, fields = {"offload": target.value}, {"offload": target}
        if target in OFFLOADS[current]:
            return attempt.change(options, **fields)
        if current in FSDP:
            return None
        return attempt.change({"sharding": sharding.value, **options}, sharding=sharding, **fields)

    return apply


def _halve_sequences(attempt: Attempt) -> Attempt | None:
    half = attempt.seq_len // 2
    if half < SHORTEST_SEQ_LEN:
        return None
    return replace(attempt.change({"seq-len": str(half)}), seq_len=half)


def _train_adapters(method: Method) -> Callable[[Attempt], Attempt | None]:
    def apply(attempt: Attempt) -> Attempt | None:
        order = list(Method)
        if order.index(attempt.recipe.method) >= order.index(method):
            return None
        return attempt.change({"method": method.value}, method=method)

    return apply


def _multiply_devices(factor: int) -> Callable[[Attempt], Attempt | None]:
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


# Ordered by how little they change: the same training first, other training last, money last.
CHANGES: tuple[Change, ...] = (
    Change(
        knob="checkpointing",
        text="recompute activations: same result, about a third more compute",
        apply=_checkpoint,
        needs_activations=True,
    ),
    Change(
        knob="micro-batch",
        text="one sequence at a time, more accumulation: same global batch",
        apply=_micro_batch_of_one,
        needs_activations=True,
    ),
    Change(knob="sharding", text="split optimizer states", apply=_shard(Sharding.ZERO1)),
    Change(
        knob="sharding",
        text="split optimizer states and gradients",
        apply=_shard(Sharding.ZERO2),
    ),
    Change(knob="sharding", text="split all states", apply=_shard(Sharding.ZERO3)),
    Change(knob="sharding", text="split all states", apply=_shard(Sharding.FSDP_FULL)),
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
        knob="seq-len",
        text="half the sequence length",
        apply=_halve_sequences,
        needs_activations=True,
    ),
    Change(
        knob="method",
        text="train LoRA adapters instead of all weights",
        apply=_train_adapters(Method.LORA),
        needs_activations=True,
        changes_method=True,
    ),
    Change(
        knob="method",
        text="train LoRA adapters over 4-bit weights",
        apply=_train_adapters(Method.QLORA),
        needs_activations=True,
        changes_method=True,
    ),
    Change(knob="devices", text="twice the devices", apply=_multiply_devices(2)),
    Change(knob="devices", text="four times the devices", apply=_multiply_devices(4)),
    Change(knob="devices", text="eight times the devices", apply=_multiply_devices(8)),
)


def rescues(*, question: Question, space: SearchSpace, start: Plan) -> tuple[Rescue, ...]:
    """Return the smallest sets of changes that fit, fewest first, then least first.

    Pairs are made of changes that are not enough alone, so every change of a pair is needed. New
    methods join pairs only while none is enough alone, because each may need a trace of its own;
    three changes at once are tried only while nothing has fitted.
    """
    begin = _attempt(space, start)
    enough: list[tuple[Change, ...]] = []
    found: list[tuple[tuple[int, ...], Rescue]] = []
    for size, with_method in product(range(1, MOST_CHANGES + 1), (False, True)):
        has_method = any("method" in rescue.change for _, rescue in found)
        if (size > 1 and with_method and has_method) or (size > 2 and found):
            continue
        for changes in combinations(_applicable(question), size):
            if any(change.changes_method for change in changes) is not with_method:
                continue
            if _is_redundant(changes, enough):
                continue
            tried = _try(question, begin, start, changes)
            if tried is None or not tried[0].fits:
                continue
            plan, attempt = tried
            enough.append(changes)
            num_options = len(dict(attempt.changed).keys() - {"nodes"})
            positions = (num_options, *(CHANGES.index(change) for change in changes))
            found.append((positions, _rescue(space, start, attempt, plan, changes)))
    found.sort(key=lambda each: each[0])
    return tuple(rescue for _, rescue in found[:MOST_RESCUES])


def ladder(*, question: Question, space: SearchSpace, start: Plan) -> tuple[Rescue, ...]:
    """Return changes each on top of the one before, until the first that fits.

    Every rung is the least change that lowers the peak, found anew from the top of the table: what
    did not help before may help now. ``change`` holds the rung's own change.
    """
    rungs: list[Rescue] = []
    attempt, plan = _attempt(space, start), start
    unused = list(_applicable(question))
    while not plan.fits:
        for change in unused:
            tried = _try(question, replace(attempt, changed=()), start, (change,))
            if tried is not None and tried[0].memory.peak_bytes < plan.memory.peak_bytes:
                break
        else:
            break
        plan, attempt = tried
        unused.remove(change)
        rungs.append(_rescue(space, start, attempt, plan, (change,)))
    return tuple(rungs)


def _applicable(question: Question) -> Iterator[Change]:
    counts = question.pricer.counts_activations
    return (change for change in CHANGES if counts or not change.needs_activations)


def _is_redundant(changes: tuple[Change, ...], enough: list[tuple[Change, ...]]) -> bool:
    """Whether two rows share a knob, or a set no stronger is already enough."""
    strengths = {change.knob: CHANGES.index(change) for change in changes}
    if len(strengths) < len(changes):
        return True
    return any(
        all(CHANGES.index(change) <= strengths.get(change.knob, -1) for change in known)
        for known in enough
    )


def _attempt(space: SearchSpace, start: Plan) -> Attempt:
    cluster = Cluster(num_ranks=start.batch.num_ranks, num_nodes=start.num_nodes)
    return Attempt(
        recipe=start.recipe,
        cluster=between_nodes(cluster, space),
        micro_batch=start.batch.micro_batch,
        seq_len=start.batch.seq_len,
    )


def _try(
    question: Question, attempt: Attempt, start: Plan, changes: tuple[Change, ...]
) -> tuple[Plan, Attempt] | None:
    """Apply all changes and price the result; devices first, as sharding needs several.

    None where a change does not apply, its method cannot be traced, or the result strays further
    from the target than the start or the tolerance.
    """
    begin = attempt
    for change in sorted(changes, key=lambda each: each.knob != "devices"):
        changed = change.apply(attempt)
        if changed is None:
            return None
        attempt = changed
    try:
        plan = _priced(question, start, attempt)
    except TraceError:
        if attempt.recipe.method is begin.recipe.method:
            raise
        return None
    allowed = max(question.goal.tolerance, abs(start.target_deviation))
    if abs(plan.target_deviation) > allowed:
        return None
    return plan, attempt


def _priced(question: Question, start: Plan, attempt: Attempt) -> Plan:
    pricer = question.pricer
    layout = Layout(recipe=attempt.recipe, cluster=attempt.cluster)
    batch = Batch(
        micro_batch=attempt.micro_batch,
        accum_steps=_accum_steps(question, start, attempt),
        num_ranks=attempt.cluster.num_ranks,
        seq_len=attempt.seq_len,
    )
    memory = pricer.price(recipe=layout.recipe, batch=batch, cluster=layout.cluster)
    return assemble(question=question, layout=layout, batch=batch, memory=memory)


def _accum_steps(question: Question, start: Plan, attempt: Attempt) -> int:
    """Return the K that keeps the target, or the start's global batch, as nearly as it can."""
    same_split = (start.batch.micro_batch, start.batch.num_ranks, start.batch.seq_len) == (
        attempt.micro_batch,
        attempt.cluster.num_ranks,
        attempt.seq_len,
    )
    if same_split:
        return start.batch.accum_steps
    wanted = question.goal.target_in_tokens(attempt.seq_len) or start.batch.global_batch_tokens
    tokens = attempt.micro_batch * attempt.cluster.num_ranks * attempt.seq_len
    below = max(1, wanted // tokens)
    nearest = min((below, below + 1), key=lambda steps: abs(steps * tokens - wanted))
    return min(MAX_ACCUM_STEPS, nearest)


def _rescue(
    space: SearchSpace,
    start: Plan,
    attempt: Attempt,
    plan: Plan,
    changes: tuple[Change, ...],
) -> Rescue:
    options = dict(attempt.changed)
    is_pinned = space.accum_steps is not None or "micro-batch" in options
    if is_pinned and plan.batch.accum_steps != start.batch.accum_steps:
        options["accum-steps"] = str(plan.batch.accum_steps)
    flags = " ".join(f"--{name} {value}" for name, value in options.items())
    return Rescue(
        change=options,
        text=f"{flags}: {', and '.join(change.text for change in changes)}",
        plan=plan,
    )
