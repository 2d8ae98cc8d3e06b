"""From profile, recipe and batch to the peak: which instant is highest, and what is there then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from batchplan.errors import SpecError
from batchplan.memory.activations import Instant, Place, fold
from batchplan.memory.bill import input_bytes, overhead_terms, state_terms, tensor_terms
from batchplan.memory.device import ALLOCATED_ERROR, SHARDED_ALLOCATED_ERROR
from batchplan.memory.parameters import Parameters
from batchplan.memory.reserve import Reserve, least_reserve, played_reserve
from batchplan.memory.setting import OPTIMIZER_STEP, Setting, prepare
from batchplan.memory.states import compute_states
from batchplan.memory.terms import ErrorBand, Estimate, Moment, Term
from batchplan.profile import ActivationProfile
from batchplan.spec import Batch, Caveat, Cluster, Gpu, Method, Recipe
from batchplan.states.numerics import resolve_dtypes
from batchplan.states.sharding import RULES
from batchplan.units import format_bytes

STATES_ERROR = ErrorBand(
    percent=0.0,
    basis="arithmetic on states alone; activations, buffers and context are left out",
)


def estimate(
    *, profile: ActivationProfile, recipe: Recipe, batch: Batch, cluster: Cluster, gpu: Gpu
) -> Estimate:
    """Return the peak of the fullest rank over one optimizer step of K micro-batches."""
    return confirm(prepare(profile=profile, recipe=recipe, cluster=cluster, gpu=gpu), batch)


def price(setting: Setting, batch: Batch) -> Estimate:
    """Return the peak with the least reserve the allocator was seen to need, in well under 1 ms.

    For searches: never more than ``confirm`` finds by much, so that nothing that fits is lost.
    """
    instants = _instants(setting, batch)
    return _estimate(setting, batch, instants, least_reserve(setting.gpu, instants.allocated_bytes))


def confirm(setting: Setting, batch: Batch) -> Estimate:
    """Return the peak with the allocator played over two optimizer steps, in about 0.1 s.

    The peak is the highest of: each stage's forward and backward in the first micro-batch (no
    gradients yet), the same in a later one (gradients resident, K >= 2), and the optimizer step.
    Adam's moments are taken to exist, as from the second step on.

    Leaves out: evaluation, checkpoint saving and loading (peaks of their own).
    Error: ``Estimate.in_use_error`` and its like, with their basis.
    """
    instants = _instants(setting, batch)
    return _estimate(
        setting, batch, instants, played_reserve(setting, batch, instants.allocated_bytes)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Instants:
    """Every instant that can be the highest, and which one is."""

    timeline: tuple[Moment, ...]
    peak: Instant[int]
    allocated_bytes: int


def _instants(setting: Setting, batch: Batch) -> _Instants:
    passes = [
        instant
        for life in setting.lives(batch.accum_steps)
        for instant in fold(
            profile=setting.profile,
            micro_batch=batch.micro_batch,
            seq_len=batch.seq_len,
            life=life,
            keeps_inputs=setting.keeps_inputs,
        )
    ]
    fixed = setting.fixed_bytes + input_bytes(batch)
    instants = (*passes, setting.optimizer_instant)
    timeline = tuple(
        Moment(
            phase=instant.phase,
            stage=instant.stage,
            num_bytes=fixed + setting.buffers.at(instant.place) + instant.num_bytes,
        )
        for instant in instants
    )
    position = max(range(len(timeline)), key=lambda at: timeline[at].num_bytes)
    peak = instants[position]
    return _Instants(
        timeline=timeline,
        peak=peak,
        allocated_bytes=timeline[position].num_bytes,
    )


def _estimate(setting: Setting, batch: Batch, instants: _Instants, reserve: Reserve) -> Estimate:
    peak, allocated = instants.peak, instants.allocated_bytes
    terms = (
        *tensor_terms(setting=setting, peak=peak, batch=batch),
        *overhead_terms(setting=setting, reserve=reserve.term),
    )
    in_use = sum(term.num_bytes for term in terms)
    bound = reserve.in_use_error.above(in_use)
    return Estimate(
        terms=terms,
        timeline=instants.timeline,
        peak_phase=(
            OPTIMIZER_STEP if peak.place is Place.OPTIMIZER_STEP else f"{peak.phase}: {peak.stage}"
        ),
        allocated_peak_bytes=allocated,
        reserved_peak_bytes=allocated + reserve.term.num_bytes,
        in_use_peak_bytes=in_use,
        host_bytes=setting.states.host_bytes,
        allocated_error=(SHARDED_ALLOCATED_ERROR if setting.is_sharded else ALLOCATED_ERROR),
        reserved_error=reserve.reserved_error,
        in_use_error=reserve.in_use_error,
        bound_bytes=min(bound, setting.gpu.usable_bytes) if reserve.runs_at_limit else bound,
        caveats=tuple(_caveats(setting, reserve, in_use, bound)),
    )


def _caveats(setting: Setting, reserve: Reserve, in_use: int, bound: int) -> Iterator[Caveat]:
    for note in setting.profile.notes:
        yield Caveat(code="trace-note", text=note)
    usable = setting.gpu.usable_bytes
    if reserve.runs_at_limit:
        yield Caveat(
            code="allocator-at-limit",
            text="With the error on top the allocator could hold more than this device has. Played "
            "at that limit it gives cached memory back in the first steps at most, and runs on.",
        )
    elif in_use <= usable < bound:
        yield Caveat(
            code="tight-fit",
            text=f"The estimate leaves {format_bytes(usable - in_use)}, less than its error of "
            f"{reserve.in_use_error.percent:g} % ({format_bytes(bound - in_use)}), so it does not "
            "count as fitting: probe before relying on it.",
        )


def estimate_states(
    *, num_params: int, recipe: Recipe, cluster: Cluster, activation_bytes: int = 0
) -> Estimate:
    """Return the bill of the states alone, for ``--params 7B``: no model, no buffers, no device.

    Weights, gradients, master weights and optimizer states of one rank, plus activation bytes
    that the user gives, all at once.

    Source: ZeRO, arXiv 1910.02054, section 3.1 and figure 1.
    Leaves out: everything else of the bill (errs low).

    Raises:
        SpecError: for LoRA and QLoRA, whose adapters depend on the model's shapes.
    """
    if recipe.method is not Method.FULL:
        raise SpecError(
            f"--params counts states of full training; how many parameters --method "
            f"{recipe.method} trains depends on the model. Name a MODEL instead."
        )
    rule = RULES[recipe.sharding]
    num_shards = rule.num_shards(cluster)
    states = compute_states(
        parameters=Parameters.of_size(num_params),
        recipe=recipe,
        dtypes=resolve_dtypes(recipe),
        rule=rule,
        num_shards=num_shards,
    )
    terms = (
        *state_terms(
            states=states, recipe=recipe, num_shards=num_shards, gradients=states.gradients
        ),
        Term(
            name="activations saved",
            num_bytes=activation_bytes,
            formula="as given",
            source="--activations",
        ),
    )
    total = sum(term.num_bytes for term in terms)
    return Estimate(
        terms=terms,
        timeline=(Moment(phase="all states at once", stage="all", num_bytes=total),),
        peak_phase="all states at once",
        allocated_peak_bytes=total,
        reserved_peak_bytes=total,
        in_use_peak_bytes=total,
        host_bytes=states.host_bytes,
        allocated_error=STATES_ERROR,
        reserved_error=STATES_ERROR,
        in_use_error=STATES_ERROR,
        bound_bytes=total,
        caveats=(
            Caveat(
                code="states-only",
                text="Only states are counted: name a MODEL to add activations and overheads.",
            ),
        ),
    )
