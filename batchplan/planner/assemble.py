"""From a candidate to a plan: bill, time, learning rate and what the user should know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchplan.learning import PublishedRun, advise, smaller_batch_note
from batchplan.learning.advice import PRETRAINING_TOKENS, LearningRate
from batchplan.memory import Estimate
from batchplan.planner.candidates import (
    Layout,
    Realise,
    Refusals,
    as_it_is,
    deviation,
    nothing_refused,
)
from batchplan.planner.explain import explain_peak
from batchplan.planner.plan import Plan
from batchplan.planner.pricing import Pricer
from batchplan.spec import (
    DEVICES_IN_A_NODE,
    MAX_MICRO_BATCH,
    Batch,
    BatchGoal,
    Caveat,
    Checkpointing,
    Cluster,
    Gpu,
    ModelInfo,
    Recipe,
)
from batchplan.throughput.communication import AMORTISED
from batchplan.units import format_count

PRACTICAL_MICRO_BATCH = 8
"""Fine-tuning practice is 1 to 8 sequences per GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What stays the same for every candidate of one answer."""

    pricer: Pricer
    goal: BatchGoal
    gpu: Gpu
    model: ModelInfo
    runs: tuple[PublishedRun, ...] = ()
    base_lr: float | None = None
    base_batch: float | None = None
    base_batch_tokens: float | None = None
    data_tokens: int | None = None
    """Tokens of the data set, padding included; None where that is not known."""
    fill: float = 1.0
    noise_tokens: float | None = None
    """Measured noise scale in tokens of the data; None was not measured."""
    """Share of all tokens that is no padding: what published batches count."""
    assumes_nodes: bool = False
    """Whether the number of nodes follows from the devices; nobody gave it."""
    assumes_inter_node: bool = False
    """Whether the rate between nodes is the default; nobody gave it."""
    checkpointings: tuple[Checkpointing, ...] = ()
    """Those whose profiles are at hand, because the search asks for them anyway."""
    larger: tuple[Question, ...] = ()
    """The same on larger devices, smallest first: what may be named when nothing fits."""
    obstacles: Refusals = nothing_refused
    """What the trainer has no setting for; a change never adds to it."""
    realise: Realise = as_it_is
    """What the trainer makes of a changed recipe."""
    assumed: frozenset[str] = frozenset()
    """Fields of the recipe that nobody gave: they follow when others change, without a word."""


def assemble(
    *, question: Question, layout: Layout, batch: Batch, memory: Estimate | None = None
) -> Plan:
    """Return the whole plan of one candidate; ``memory`` is its bill if already priced."""
    pricer = question.pricer
    recipe, cluster = layout.recipe, layout.cluster
    if memory is None:
        memory = pricer.confirm(recipe=recipe, batch=batch, cluster=cluster)
    timer = pricer.timer(recipe=recipe, cluster=cluster, seq_len=batch.seq_len)
    target = question.goal.target_in_tokens(batch.seq_len)
    off = deviation(tokens=batch.global_batch_tokens, target=target)
    return Plan(
        recipe=recipe,
        batch=batch,
        num_nodes=cluster.num_nodes,
        memory=memory,
        usable_bytes=question.gpu.usable_bytes,
        step_time=None if timer is None else timer.step_time(batch.micro_batch, batch.accum_steps),
        target_deviation=off,
        learning_rate=_learning_rate(question, recipe, batch),
        peak_bytes_without_accumulation=_unaccumulated_peak(pricer, layout, batch, memory),
        peak=explain_peak(
            pricer,
            recipe,
            batch,
            cluster,
            memory,
            checkpointings=question.checkpointings,
            has_target=question.goal.is_set,
        ),
        caveats=(
            *_target_caveats(question.goal, batch, off, target),
            *_accumulation_caveats(recipe, batch, target),
            *_smaller_batch(question, recipe, batch),
            *_size_caveats(question, batch),
            *_node_caveats(question, cluster),
        ),
    )


def search_caveats(*, question: Question, recipe: Recipe) -> Iterator[Caveat]:
    """Yield what is true of every plan of one answer."""
    if not question.goal.is_set:
        yield Caveat(
            code="no-target",
            text="No target was given, so K is 1 unless pinned: accumulating without a reason "
            "makes K times fewer updates for the same FLOPs. Give --target-tokens to search K.",
        )
    if not question.gpu.has_bf16 and recipe.numerics.value.startswith("bf16"):
        yield Caveat(
            code="bf16-not-native",
            text=f"{question.gpu.name} has no bf16 tensor cores: use fp16 with loss scaling.",
        )


def _learning_rate(question: Question, recipe: Recipe, batch: Batch) -> LearningRate:
    runs: Sequence[PublishedRun] = question.runs
    return advise(
        method=recipe.method,
        optimizer=recipe.optimizer,
        num_params=question.pricer.num_params(recipe=recipe, seq_len=batch.seq_len),
        hidden_size=question.model.hidden_size,
        global_batch_size=batch.global_batch_size,
        seq_len=batch.seq_len,
        base_lr=question.base_lr,
        base_batch=question.base_batch,
        base_batch_tokens=question.base_batch_tokens,
        runs=runs,
        data_tokens=question.data_tokens,
        noise_scale=None
        if question.noise_tokens is None
        else question.noise_tokens / (batch.seq_len * question.fill),
    )


def _unaccumulated_peak(
    pricer: Pricer, layout: Layout, batch: Batch, memory: Estimate
) -> int | None:
    """Return the peak at K = 1: what the quick price says is more, on top of the plan's own."""
    whole = batch.micro_batch * batch.accum_steps
    if batch.accum_steps == 1 or whole > MAX_MICRO_BATCH or not pricer.counts_activations:
        return None
    at_once = batch.model_copy(update={"micro_batch": whole, "accum_steps": 1})
    quick, quick_at_once = (
        pricer.price(recipe=layout.recipe, batch=each, cluster=layout.cluster).peak_bytes
        for each in (batch, at_once)
    )
    return memory.peak_bytes + quick_at_once - quick


def _target_caveats(
    goal: BatchGoal, batch: Batch, off: float, target: int | None
) -> Iterator[Caveat]:
    if target is None:
        return
    reached = batch.global_batch_tokens
    if abs(off) > goal.tolerance:
        yield Caveat(
            code="outside-tolerance",
            text=f"Nearest achievable: {reached:,} tokens ({batch.global_batch_size} sequences) "
            f"where {target:,} were asked, {off:+.2%}; the tolerance is {goal.tolerance:.2%}.",
        )
    sequences = target // batch.seq_len
    if sequences < batch.num_ranks:
        yield Caveat(
            code="fewer-sequences-than-ranks",
            text=f"The target holds {sequences} sequences and there are {batch.num_ranks} "
            "devices, which each need at least one. Use fewer devices or shorter sequences.",
        )


def _accumulation_caveats(recipe: Recipe, batch: Batch, target: int | None) -> Iterator[Caveat]:
    steps = batch.accum_steps
    if steps == 1:
        return
    if target is None:
        yield Caveat(
            code="accumulation-has-no-reason",
            text=f"K = {steps} without a target: K = 1 would make {steps} times the updates for "
            "the same FLOPs.",
        )
        return
    amortised = (
        f" It also divides the communication of {recipe.sharding} by {steps}."
        if batch.num_ranks > 1 and recipe.sharding in AMORTISED
        else ""
    )
    yield Caveat(
        code="accumulation-reason",
        text=f"K = {steps} because the target is {format_count(target)} tokens and one "
        f"micro-batch on {batch.num_ranks} rank{'s' if batch.num_ranks > 1 else ''} is "
        f"{format_count(batch.global_batch_tokens // steps)}.{amortised}",
    )


def _smaller_batch(question: Question, recipe: Recipe, batch: Batch) -> Iterator[Caveat]:
    if not question.goal.is_set:
        return  # Nobody asked for a batch this large; K = 1 has its own reason.
    data_tokens = question.data_tokens
    note = smaller_batch_note(
        global_batch_tokens=round(batch.global_batch_tokens * question.fill),
        method=recipe.method,
        num_params=question.pricer.num_params(recipe=recipe, seq_len=batch.seq_len),
        data_tokens=None if data_tokens is None else round(data_tokens * question.fill),
        accum_steps=batch.accum_steps,
        num_ranks=batch.num_ranks,
    )
    if note is not None:
        yield note


def _size_caveats(question: Question, batch: Batch) -> Iterator[Caveat]:
    is_fine_tuning = batch.global_batch_tokens < PRETRAINING_TOKENS
    if is_fine_tuning and batch.micro_batch > PRACTICAL_MICRO_BATCH:
        yield Caveat(
            code="micro-batch-outside-practice",
            text=f"{batch.micro_batch} sequences per GPU; fine-tuning practice is 1 to "
            f"{PRACTICAL_MICRO_BATCH}.",
        )
    longest = question.model.max_seq_len
    if longest is not None and batch.seq_len > longest:
        yield Caveat(
            code="seq-len-beyond-model",
            text=f"Sequences of {batch.seq_len:,} tokens; the model's config reaches {longest:,}.",
        )


def _node_caveats(question: Question, cluster: Cluster) -> Iterator[Caveat]:
    if cluster.num_nodes == 1:
        return
    if question.assumes_nodes:
        yield Caveat(
            code="nodes-assumed",
            text=f"No --nodes given: {cluster.num_ranks} devices are taken to be "
            f"{cluster.num_nodes} nodes of {cluster.ranks_per_node} (a node holds "
            f"{DEVICES_IN_A_NODE} at most).",
        )
    if question.assumes_inter_node:
        yield Caveat(
            code="inter-node-assumed",
            text=f"No --inter-node-gb-per-s given: {cluster.inter_node_gb_per_s:g} GB/s one way "
            "per GPU between nodes is assumed (a 200 Gb/s adapter for each GPU).",
        )
