"""From profile, recipe and batch to the peak: which instant is highest, and what is there then."""

from __future__ import annotations

from batchplan.errors import SpecError
from batchplan.memory.activations import Instant, fold
from batchplan.memory.bill import bill, input_bytes, state_terms
from batchplan.memory.device import ERROR_BASIS, ERROR_PERCENT, allocator_reserve_bytes
from batchplan.memory.setting import Setting, prepare
from batchplan.memory.states import ParamCounts, compute_states
from batchplan.memory.terms import Estimate, Moment, Term
from batchplan.profile import ActivationProfile
from batchplan.spec import Batch, Caveat, Cluster, Gpu, Method, Recipe
from batchplan.states.numerics import resolve_dtypes
from batchplan.states.sharding import RULES

OPTIMIZER_STEP = "optimizer step"


def estimate(
    *, profile: ActivationProfile, recipe: Recipe, batch: Batch, cluster: Cluster, gpu: Gpu
) -> Estimate:
    """Return the peak of the fullest rank over one optimizer step of K micro-batches."""
    return price(prepare(profile=profile, recipe=recipe, cluster=cluster, gpu=gpu), batch)


def price(setting: Setting, batch: Batch) -> Estimate:
    """Return the peak of the fullest rank over one optimizer step of K micro-batches.

    The peak is the highest of: each stage's forward and backward in the first micro-batch (no
    gradients yet), the same in a later one (gradients resident, K >= 2), and the optimizer step.
    Adam's moments are taken to exist, as from the second step on.

    Leaves out: evaluation, checkpoint saving and loading (peaks of their own); padding of uneven
    shards (errs low by KiB).
    Error: ``Estimate.error_percent``, with its basis.
    """
    profile = setting.profile
    step = Instant(
        phase=OPTIMIZER_STEP,
        stage="all",
        saved=0,
        transient=setting.states.step_temporary,
        head=0,
        gradients=setting.states.gradients,
    )
    passes = [
        instant
        for life in setting.lives(batch.accum_steps)
        for instant in fold(
            profile=profile, micro_batch=batch.micro_batch, seq_len=batch.seq_len, life=life
        )
    ]
    fixed = setting.fixed_bytes + input_bytes(batch)
    in_pass = setting.buffers.gathered_bytes + setting.communication_bytes(in_step=False)
    timeline = [
        Moment(
            phase=instant.phase, stage=instant.stage, num_bytes=fixed + in_pass + instant.num_bytes
        )
        for instant in passes
    ]
    in_step = fixed + setting.communication_bytes(in_step=True) + step.num_bytes
    timeline.append(Moment(phase=OPTIMIZER_STEP, stage="all", num_bytes=in_step))
    position = max(range(len(timeline)), key=lambda at: timeline[at].num_bytes)
    peak = (*passes, step)[position]
    terms = bill(setting=setting, peak=peak, batch=batch, in_step=peak is step)
    allocated = timeline[position].num_bytes
    return Estimate(
        terms=terms,
        timeline=tuple(timeline),
        peak_phase=OPTIMIZER_STEP if peak is step else f"{peak.phase}: {peak.stage}",
        allocated_peak_bytes=allocated,
        reserved_peak_bytes=allocated + allocator_reserve_bytes(allocated),
        in_use_peak_bytes=sum(term.num_bytes for term in terms),
        host_bytes=setting.states.host_bytes,
        error_percent=ERROR_PERCENT,
        error_basis=ERROR_BASIS,
        caveats=tuple(_caveats(profile)),
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
        counts=ParamCounts(trainable=num_params),
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
        error_percent=0.0,
        error_basis="arithmetic on states alone; activations, buffers and context are left out",
        caveats=(
            Caveat(
                code="states-only",
                text="Only states are counted: name a MODEL to add activations and overheads.",
            ),
        ),
    )


def _caveats(profile: ActivationProfile) -> list[Caveat]:
    return [Caveat(code="trace-note", text=note) for note in profile.notes]
