"""Why the peak is what it is: which instant binds, by how much, and what would really move it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from batchplan.memory import Estimate, Moment
from batchplan.memory.setting import OPTIMIZER_STEP
from batchplan.planner.options import flags
from batchplan.planner.pricing import Pricer
from batchplan.spec import Batch, Checkpointing, Cluster, OptimizerImpl, Recipe
from batchplan.units import format_bytes

MATTERS = 0.01
"""A change of the peak by less than this share of it is none: the quick price is no surer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mover:
    """One thing done differently, and by how much the peak falls."""

    change: dict[str, str]
    """Option name without dashes in front to its value."""
    text: str
    saved_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakExplanation:
    """Which instant is the highest, what comes next, and what would lower it."""

    binding: str
    """Phase and stage, as ``Estimate.peak_phase``."""
    next: str | None
    """The highest instant of any other stage, or of the optimizer step; None without one."""
    margin_bytes: int | None
    """Live bytes by which the binding instant is above the next."""
    batch_matters: bool
    """Whether another micro-batch would have another peak."""
    movers: tuple[Mover, ...]
    """What lowers the peak, most first; what does not is left out."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nudge:
    """One thing to do differently; None where it is no difference."""

    text: str
    apply: Callable[[Recipe, Batch], tuple[dict[str, str], Recipe, Batch] | None]


def _micro_batch(smaller: Callable[[int], int]) -> Callable[[Recipe, Batch], _Nudged]:
    def apply(recipe: Recipe, batch: Batch) -> _Nudged:
        size = smaller(batch.micro_batch)
        if not 1 <= size < batch.micro_batch:
            return None
        fewer = batch.model_copy(update={"micro_batch": size})
        return {"micro-batch": str(size)}, recipe, fewer

    return apply


def _without_accumulation(recipe: Recipe, batch: Batch) -> _Nudged:
    if batch.accum_steps == 1:
        return None
    return {"accum-steps": "1"}, recipe, batch.model_copy(update={"accum_steps": 1})


def _with(field: str, value: object, shown: str) -> Callable[[Recipe, Batch], _Nudged]:
    def apply(recipe: Recipe, batch: Batch) -> _Nudged:
        if getattr(recipe, field) == value:
            return None
        changed = recipe.model_copy(update={field: value})
        return {field.replace("_", "-"): shown}, changed, batch

    return apply


_Nudged = tuple[dict[str, str], Recipe, Batch] | None

NUDGES = (
    _Nudge(text="half the micro-batch", apply=_micro_batch(lambda size: size // 2)),
    _Nudge(text="one sequence fewer", apply=_micro_batch(lambda size: size - 1)),
    _Nudge(text="no accumulation (K = 1)", apply=_without_accumulation),
    _Nudge(
        text="fused optimizer kernels",
        apply=_with("optimizer_impl", OptimizerImpl.FUSED, "fused"),
    ),
    _Nudge(
        text="gradients reduced after every micro-batch",
        apply=_with("sync_each_batch", True, "yes"),  # noqa: FBT003 - a field's value
    ),
)
"""None of these needs another trace of the model's code."""


def explain_peak(
    pricer: Pricer,
    recipe: Recipe,
    batch: Batch,
    cluster: Cluster,
    memory: Estimate,
    *,
    checkpointings: tuple[Checkpointing, ...] = (),
    has_target: bool = False,
) -> PeakExplanation | None:
    """Return what binds in ``memory`` and what would move it, by quick prices alone.

    Args:
        pricer: prices what is done differently.
        recipe: as priced in ``memory``.
        batch: as priced in ``memory``.
        cluster: as priced in ``memory``.
        memory: the bill to explain.
        checkpointings: those whose profiles are at hand, so that asking costs no trace.
        has_target: whether K is there to reach a target, so that K = 1 is no choice.

    None where activations are not counted: then there is one instant only.
    Leaves out: what needs another trace (sequence length, loss, attention); see ``rescues``.
    """
    if not pricer.counts_activations or not memory.timeline:
        return None

    def peak_bytes(recipe: Recipe, batch: Batch) -> int:
        return pricer.price(recipe=recipe, batch=batch, cluster=cluster).peak_bytes

    now = peak_bytes(recipe, batch)
    found: dict[int, Mover] = {}
    for text, change, other_recipe, other_batch in _nudged(recipe, batch, checkpointings):
        if has_target and other_batch.accum_steps != batch.accum_steps:
            continue
        saved = now - peak_bytes(other_recipe, other_batch)
        if saved > MATTERS * now:
            told = f"{text} ({flags(change)})"
            found.setdefault(saved, Mover(change=change, text=told, saved_bytes=saved))
    movers = tuple(found[saved] for saved in sorted(found, reverse=True))
    other = max(1, batch.micro_batch // 2) if batch.micro_batch > 1 else 2
    resized = batch.model_copy(update={"micro_batch": other})
    batch_matters = abs(peak_bytes(recipe, resized) - now) > MATTERS * now
    top = max(memory.timeline, key=lambda moment: moment.num_bytes)
    rest = [moment for moment in memory.timeline if moment.stage != top.stage]
    second = max(rest, key=lambda moment: moment.num_bytes, default=None)
    margin = None if second is None else top.num_bytes - second.num_bytes
    return PeakExplanation(
        binding=memory.peak_phase,
        next=None if second is None else _name(second),
        margin_bytes=margin,
        batch_matters=batch_matters,
        movers=movers,
        text=_text(top, second, movers, other=other, batch_matters=batch_matters),
    )


def _nudged(
    recipe: Recipe, batch: Batch, checkpointings: tuple[Checkpointing, ...]
) -> Iterator[tuple[str, dict[str, str], Recipe, Batch]]:
    order = list(Checkpointing)
    stronger = tuple(
        _Nudge(text=f"{each} checkpointing", apply=_with("checkpointing", each, each.value))
        for each in checkpointings
        if order.index(each) > order.index(recipe.checkpointing)
    )
    for nudge in (*NUDGES, *stronger):
        done = nudge.apply(recipe, batch)
        if done is not None:
            yield nudge.text, *done


def _text(
    top: Moment,
    second: Moment | None,
    movers: tuple[Mover, ...],
    *,
    other: int,
    batch_matters: bool,
) -> str:
    above = (
        ""
        if second is None
        else f", {format_bytes(top.num_bytes - second.num_bytes)} above {_words(second)}"
    )
    binds = f"{_words(top)} binds"
    sentences = [f"{binds[0].upper()}{binds[1:]}{above}."]
    if not batch_matters:
        sentences.append(
            f"Batch size does not matter here: at micro-batch {other} the peak would be within "
            f"{MATTERS:.0%} of this."
        )
    if movers:
        best = movers[0]
        sentences.append(
            f"Most would move with {best.text}: {format_bytes(best.saved_bytes)} less."
        )
    return " ".join(sentences)


def _name(moment: Moment) -> str:
    is_step = moment.phase == OPTIMIZER_STEP
    return OPTIMIZER_STEP if is_step else f"{moment.phase}: {moment.stage}"


def _words(moment: Moment) -> str:
    is_step = moment.phase == OPTIMIZER_STEP
    return f"the {OPTIMIZER_STEP}" if is_step else f"the {moment.phase} of {moment.stage}"
