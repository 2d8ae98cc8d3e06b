"""From the inputs of ``recommend`` to a search: what is pinned, what may vary, what is wanted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from batchplan.api.axes import Axes
from batchplan.api.checks import checked, shown, whole
from batchplan.api.devices import AUTO, device_counts
from batchplan.api.learning import batch_size, positive_number
from batchplan.api.profiles import Profiles
from batchplan.api.recipes import DTYPE_FIELDS, fill, numerics_words
from batchplan.api.request import Request
from batchplan.errors import SpecError
from batchplan.planner import (
    MOST_TRACES,
    Aim,
    Answer,
    ProfilePricer,
    SearchSpace,
    StatesPricer,
    savings,
    search,
    speedups,
)
from batchplan.planner import Question as PlannerQuestion
from batchplan.planner.candidates import clusters, layouts, nothing_refused
from batchplan.planner.hardware import check_attention
from batchplan.sources import larger_gpus, load_runs
from batchplan.spec import (
    BatchGoal,
    Caveat,
    Checkpointing,
    Method,
    Numerics,
    Offload,
    Recipe,
    Sharding,
    nodes_for,
)
from batchplan.tracer import profile_key
from batchplan.trainers import (
    no_sharding,
    preferred_numerics,
    realisable_shardings,
    realised,
    refusals,
)
from batchplan.units import parse_percent

_MOST_PLANS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A search, ready to run."""

    recipe: Recipe
    space: SearchSpace
    goal: BatchGoal
    base_lr: float | None
    base_batch: float | None
    base_batch_tokens: float | None
    lr_batch: int | str | None
    limit: int
    data_tokens: int | None
    fill: float
    aim: Aim
    pareto: bool
    rescues: bool
    axes: Axes
    searched_fields: tuple[str, ...]
    """Fields of the recipe that the search decides."""
    caveats: tuple[Caveat, ...]
    noise_tokens: float | None = None
    """Measured noise scale in tokens of the data."""

    def inputs(self) -> dict[str, Any]:
        """Return what was asked beyond the shared inputs, over the recipe's: searched is None."""
        return {
            **dict.fromkeys(self.searched_fields),
            "target_tokens": self.goal.target_tokens,
            "target_sequences": self.goal.target_sequences,
            "tolerance": self.goal.tolerance,
            "micro_batch": self.space.micro_batch,
            "accum_steps": self.space.accum_steps,
            "lr": self.base_lr,
            "lr_batch": self.lr_batch,
            "limit": self.limit,
            "optimize": self.aim.objective.value,
            "pareto": self.pareto,
            "rescues": self.rescues,
            **self.axes.texts,
        }


def question(
    request: Request,
    *,
    target_tokens: object,
    target_sequences: object,
    tolerance: object,
    devices: int | str,
    micro_batch: object,
    accum_steps: object,
    lr: object,
    lr_batch: int | str | None,
    limit: int,
    data_tokens: int | None,
    fill: float,
    aim: Aim,
    pareto: bool,
    rescues: bool,
    axes: Axes,
) -> Question:
    """Return the search that the inputs ask for.

    Raises:
        SpecError: when an input is wrong or two contradict each other.
    """
    if limit > _MOST_PLANS:
        raise SpecError(f"--limit {limit:.4g} is too large: at most {_MOST_PLANS:,}.")
    counts = device_counts(devices, request.nodes)
    gpu = request.gpu
    recipe, caveats = _recipe(request, counts)
    check_attention(recipe, gpu)
    base_batch, in_tokens = (None, False)
    if lr_batch is not None:
        base_batch, in_tokens = batch_size("lr_batch", lr_batch)
    space = SearchSpace(
        num_ranks=counts,
        num_nodes=request.nodes,
        inter_node_gb_per_s=request.inter_node_gb_per_s,
        stop_at_first_fit=devices == AUTO,
        micro_batch=_optional("micro_batch", micro_batch),
        accum_steps=_optional("accum_steps", accum_steps),
        shardings=axes.of("sharding", gpu) or _shardings(request, recipe, counts),
        checkpointings=axes.of("checkpointing", gpu)
        or _pinned(request, "checkpointing", recipe, (Checkpointing.NONE, Checkpointing.FULL)),
        offloads=axes.of("offload", gpu) or _pinned(request, "offload", recipe, (Offload.NONE,)),
        attentions=axes.of("attention", gpu),
        seq_len=request.seq_len,
        # Of several values only those that can be configured are worth an answer.
        refusals=partial(_refusals, request) if axes.values else nothing_refused,
        realise=cache(partial(_realise, request)),
    )
    return Question(
        recipe=recipe,
        space=space,
        goal=_goal(target_tokens, target_sequences, tolerance),
        base_lr=None if lr is None else positive_number("lr", lr),
        base_batch=None if in_tokens else base_batch,
        base_batch_tokens=base_batch if in_tokens else None,
        lr_batch=lr_batch,
        limit=limit,
        searched_fields=tuple(
            name for name in ("sharding", "checkpointing") if name not in request.given
        ),
        data_tokens=data_tokens,
        fill=fill,
        aim=aim,
        pareto=pareto,
        rescues=rescues,
        axes=axes,
        caveats=caveats,
    )


def ask(request: Request, asked: Question, profiles: Profiles) -> Answer:
    """Run the search, with the model's profiles or on states alone."""
    question = planner_question(request, asked, profiles)
    found = search(
        question=question,
        recipe=asked.recipe,
        space=asked.space,
        aim=asked.aim,
        limit=asked.limit,
        pareto=asked.pareto,
    )
    if not (asked.rescues and found.plans):
        return found
    best = found.plans[0]
    return replace(
        found,
        speedups=speedups(question=question, space=asked.space, start=best, traces=MOST_TRACES),
        savings=savings(question=question, space=asked.space, start=best),
    )


def planner_question(request: Request, asked: Question, profiles: Profiles) -> PlannerQuestion:
    """Return what the planner needs beside recipe and space; traces what is not cached."""
    pricer: ProfilePricer | StatesPricer
    space = asked.space
    if request.num_params is None:
        profiles.fetch(_ways(asked, request.library), space.seq_len)
        pricer = ProfilePricer(profiles=profiles, gpu=request.gpu)
    else:
        pricer = StatesPricer(
            num_params=request.num_params, activation_bytes=request.activation_bytes
        )
    question = PlannerQuestion(
        pricer=pricer,
        goal=asked.goal,
        gpu=request.gpu,
        model=request.model,
        runs=load_runs(),
        base_lr=asked.base_lr,
        base_batch=asked.base_batch,
        base_batch_tokens=asked.base_batch_tokens,
        data_tokens=asked.data_tokens,
        fill=asked.fill,
        noise_tokens=asked.noise_tokens,
        assumes_nodes=space.num_nodes is None,
        assumes_inter_node=space.inter_node_gb_per_s is None,
        checkpointings=space.checkpointings,
        obstacles=partial(_refusals, request),
        realise=space.realise,
        assumed=frozenset(Recipe.model_fields) - request.given.keys(),
    )
    if request.num_params is not None:
        return question
    larger = (
        replace(question, gpu=gpu, pricer=ProfilePricer(profiles=profiles, gpu=gpu))
        for gpu in larger_gpus(request.gpu)
    )
    return replace(question, larger=tuple(larger))


def _ways(asked: Question, library: str) -> list[Recipe]:
    """Return a recipe for each profile that the search needs."""
    space = asked.space
    # Counts of devices differ in nothing that a trace sees but whether there are several.
    counts = {ranks > 1: cluster for cluster in clusters(space) for ranks in [cluster.num_ranks]}
    found = {
        profile_key(layout.recipe, space.seq_len, library): layout.recipe
        for cluster in counts.values()
        for layout in layouts(recipe=asked.recipe, space=space, cluster=cluster)
    }
    return list(found.values())


def _refusals(request: Request, recipe: Recipe, num_ranks: int) -> tuple[str, ...]:
    found = refusals(request.trainer, recipe, versions=request.versions, num_ranks=num_ranks)
    return tuple(f"{request.trainer}: {text}" for text in found)


def _realise(request: Request, recipe: Recipe, several_devices: bool) -> Recipe:  # noqa: FBT001
    """Return what the trainer makes of a recipe; what the user gave stays."""
    return realised(
        request.trainer,
        recipe,
        versions=request.versions,
        several_devices=several_devices,
        given=frozenset(request.given),
    )


def _recipe(request: Request, counts: tuple[int, ...]) -> tuple[Recipe, tuple[Caveat, ...]]:
    numerics = _default_numerics(request, counts)
    recipe = fill(request.given, {"numerics": numerics})
    if "numerics" in request.given:
        return recipe, ()
    given = [request.given.get(name) is not None for name in DTYPE_FIELDS]
    if all(given):
        return recipe, ()
    planned = f"{numerics.value} is planned ({_meaning(numerics, recipe.method)})"
    if any(given):
        words = numerics_words(recipe)
        planned = f"{numerics.value} fills in the dtypes that were not given ({words})"
    text = f"No --numerics given: {planned}."
    return recipe, (Caveat(code="numerics-assumed", text=text),)


_MEANING = {
    "master": "16-bit weights with fp32 copies of what trains",
    "autocast": "fp32 weights, 16-bit arithmetic",
}
_BARE = {Method.FULL: "all of it in {width} bits"}
"""Numerics of one dtype alone where all trains; beside adapters only the base has it."""


def _meaning(numerics: Numerics, method: Method) -> str:
    half, _, kind = numerics.value.partition("-")
    bare = _BARE.get(method, "a {width}-bit base under fp32 adapters")
    meaning = _MEANING.get(kind) or bare.format(width=half[2:])
    return meaning if half == "bf16" else f"{meaning}; the GPU has no bf16"


def _default_numerics(request: Request, counts: tuple[int, ...]) -> Numerics:
    """Return numerics that keep fp32 values of whatever trains, where the trainer can.

    Raises:
        SpecError: when a value of the recipe is not allowed.
    """
    recipe = fill(request.given, {})
    return preferred_numerics(
        request.trainer,
        method=recipe.method,
        sharding=recipe.sharding if "sharding" in request.given else None,
        has_bf16=request.gpu.has_bf16,
        counts=counts,
    )


def _shardings(request: Request, recipe: Recipe, counts: tuple[int, ...]) -> tuple[Sharding, ...]:
    nodes = request.nodes or max(nodes_for(num_ranks) for num_ranks in counts)
    if "sharding" in request.given:
        return (recipe.sharding,)
    found = realisable_shardings(
        request.trainer, recipe.numerics, max(counts), num_nodes=nodes, method=recipe.method
    )
    if not found:
        what = f"--method {recipe.method.value} with --numerics {recipe.numerics.value}"
        why = no_sharding(request.trainer, recipe, max(counts))
        raise SpecError(f"{request.trainer} cannot run {what}: {why}.")
    return found


def _pinned(request: Request, name: str, recipe: Recipe, searched: tuple[Any, ...]) -> Any:
    return (getattr(recipe, name),) if name in request.given else searched


def _optional(name: str, value: object) -> int | None:
    return None if value is None else whole(name, value)


def _goal(tokens: object, sequences: object, tolerance: object) -> BatchGoal:
    fraction = tolerance
    if isinstance(tolerance, str):
        try:
            fraction = parse_percent(tolerance)
        except SpecError as error:
            raise SpecError(f"--tolerance: {error}") from None
    if fraction is not None and (
        isinstance(fraction, bool) or not isinstance(fraction, int | float)
    ):
        raise SpecError(f"--tolerance {shown(tolerance)} is not a fraction such as 2% or 0.02.")
    return checked(
        BatchGoal,
        {
            "target_tokens": _optional("target_tokens", tokens),
            "target_sequences": _optional("target_sequences", sequences),
            "tolerance": fraction,
        },
    )
