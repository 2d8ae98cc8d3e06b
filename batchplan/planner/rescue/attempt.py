"""A configuration under repair: what was changed, how its batch is split, and its price."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batchplan.memory import Estimate
from batchplan.planner.assemble import Question, assemble
from batchplan.planner.candidates import Layout, SearchSpace, between_nodes, deviation
from batchplan.planner.options import flags
from batchplan.planner.plan import Plan, Rescue, Semantics
from batchplan.spec import MAX_ACCUM_STEPS, Batch, Cluster, Recipe
from batchplan.states.numerics import resolve_dtypes

if TYPE_CHECKING:
    from batchplan.planner.rescue.changes import Change

MOST_RESCUES = 6
"""Offers of one kind that are shown."""

_NEGLIGIBLE = (Semantics.SAME, Semantics.ROUNDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The plan that is to be changed, as it was asked for."""

    plan: Plan
    is_pinned: bool
    """Whether K was given, so that another one has to be said."""

    @property
    def seconds_per_token(self) -> float | None:
        """Of the whole cluster; None when rates are unknown."""
        return _seconds_per_token(self.plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The start with some things changed, and the options that say so."""

    start: Start
    question: Question
    """The start's, or the same on a larger device."""
    recipe: Recipe
    cluster: Cluster
    micro_batch: int
    seq_len: int
    options: tuple[tuple[str, str], ...] = ()

    def change(self, options: dict[str, str], **fields: object) -> Attempt:
        """Return a copy with fields of the recipe changed, remembering the options."""
        return replace(
            self,
            recipe=self.recipe.model_copy(update=fields) if fields else self.recipe,
            options=tuple({**dict(self.options), **options}.items()),
        )

    @property
    def traced_as(self) -> tuple[object, ...]:
        """What of it changes activations: equal attempts share a profile."""
        recipe, dtypes = self.recipe, resolve_dtypes(self.recipe)
        return (
            recipe.method,
            recipe.checkpointing,
            recipe.loss,
            recipe.attention,
            recipe.reentrant,
            recipe.fp32_outputs,
            recipe.norm_dtype,
            dtypes.weights,
            dtypes.frozen,
            self.seq_len,
        )

    @property
    def batch(self) -> Batch:
        """The split whose K keeps the start's tokens a step as nearly as it can."""
        old = self.start.plan.batch
        split = (self.micro_batch, self.cluster.num_ranks, self.seq_len)
        accum_steps = (
            old.accum_steps
            if split == (old.micro_batch, old.num_ranks, old.seq_len)
            else nearest_accum_steps(self.tokens, *split)
        )
        return Batch(
            micro_batch=self.micro_batch,
            accum_steps=accum_steps,
            num_ranks=self.cluster.num_ranks,
            seq_len=self.seq_len,
        )

    @property
    def tokens(self) -> int:
        """Tokens a step that it should keep: the target, or else the start's on each device."""
        old = self.start.plan.batch
        target = self.question.goal.target_in_tokens(self.seq_len)
        return target or old.global_batch_tokens // old.num_ranks * self.cluster.num_ranks

    @property
    def keeps_the_batch(self) -> bool:
        """Whether it strays from the tokens a step no further than the start or the tolerance."""
        allowed = max(self.question.goal.tolerance, abs(self.start.plan.target_deviation))
        off = deviation(tokens=self.batch.global_batch_tokens, target=self.tokens)
        return abs(off) <= allowed

    @property
    def usable_bytes(self) -> int:
        """What it has to fit into."""
        return self.question.gpu.usable_bytes

    def price(self) -> Estimate:
        """Return the least bill, quickly."""
        return self.question.pricer.price(
            recipe=self.recipe, batch=self.batch, cluster=self.cluster
        )

    def confirm(self) -> Estimate:
        """Return the bill as it would be shown."""
        return self.question.pricer.confirm(
            recipe=self.recipe, batch=self.batch, cluster=self.cluster
        )

    def rescue(self, changes: Iterable[Change], memory: Estimate) -> Rescue:
        """Return the whole offer, with what it saves and costs against the start."""
        changes = tuple(changes)
        start = self.start.plan
        plan = assemble(
            question=self.question,
            layout=Layout(recipe=self.recipe, cluster=self.cluster),
            batch=self.batch,
            memory=memory,
        )
        options = dict(self.options)
        has_new_steps = plan.batch.accum_steps != start.batch.accum_steps
        if has_new_steps and (self.start.is_pinned or "micro-batch" in options):
            options["accum-steps"] = str(plan.batch.accum_steps)
        before, after = self.start.seconds_per_token, _seconds_per_token(plan)
        return Rescue(
            change=options,
            text=f"{flags(options)}: {', and '.join(change.text for change in changes)}",
            plan=plan,
            saved_bytes=start.memory.peak_bytes - plan.memory.peak_bytes,
            time_ratio=None if before is None or after is None else after / before,
            semantics=_together(change.semantics for change in changes),
        )


def begin(*, question: Question, space: SearchSpace, start: Plan) -> Attempt:
    """Return the start as an attempt without changes."""
    cluster = Cluster(num_ranks=start.batch.num_ranks, num_nodes=start.num_nodes)
    cluster = between_nodes(cluster, space)
    return Attempt(
        start=Start(
            plan=start,
            is_pinned=space.accum_steps is not None,
        ),
        question=question,
        recipe=start.recipe,
        cluster=cluster,
        micro_batch=start.batch.micro_batch,
        seq_len=start.batch.seq_len,
    )


def nearest_accum_steps(tokens: int, micro_batch: int, num_ranks: int, seq_len: int) -> int:
    """Return the K whose step is nearest ``tokens``.

    >>> nearest_accum_steps(4_000_000, 1, 8, 2048)
    244
    """
    each = micro_batch * num_ranks * seq_len
    below = max(1, tokens // each)
    nearest = min((below, below + 1), key=lambda steps: abs(steps * each - tokens))
    return min(MAX_ACCUM_STEPS, nearest)


def _seconds_per_token(plan: Plan) -> float | None:
    time = plan.step_time
    return None if time is None else time.mid / plan.batch.global_batch_tokens


def _together(each: Iterable[Semantics]) -> tuple[Semantics, ...]:
    """Return what several changes do to the training: rounding is not worth a word beside more."""
    found = set(each)
    more = tuple(kind for kind in Semantics if kind in found and kind not in _NEGLIGIBLE)
    return more or (max(found, key=_NEGLIGIBLE.index),)
