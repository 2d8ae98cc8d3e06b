"""Time of one micro-batch on a busy device, its launch floor, and dequantisation."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.profile import ActivationProfile
from batchplan.spec import Checkpointing, Gpu, Method, Recipe
from batchplan.states.numerics import resolve_dtypes
from batchplan.throughput import rates
from batchplan.throughput.flops import is_mixture_of_experts, micro_batch_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """What one sequence costs, and what a micro-batch costs at least."""

    sequence_seconds: float
    floor_seconds: float
    dequantise_seconds: float
    """Per micro-batch, whatever its size."""
    model_flops: float
    """Of one sequence, recomputation left out."""
    convention: str
    formula: str
    source: str
    is_measured: bool
    """Whether runs on this device, at this kind of work, stand behind the rates."""


def compute(
    *,
    profile: ActivationProfile,
    recipe: Recipe,
    gpu: Gpu,
    bandwidth: float,
    seq_len: int,
    reached: rates.Efficiency,
) -> Compute:
    """Return the cost of one sequence: products + scores + element-wise + logits.

    Args:
        profile: for ``recipe``; its shapes are read, not its bytes.
        recipe: method, dtypes, checkpointing, attention and loss matter.
        gpu: with a known ``bf16_tflops``.
        bandwidth: of the device's memory, in units of 10**9 bytes/s.
        seq_len: tokens a sequence.
        reached: shares of the rate, and bytes moved.
    """
    peak = (gpu.bf16_tflops or 0.0) * 1e12
    source = (
        f"{gpu.name}: {reached.products:.0%} of {gpu.bf16_tflops:g} TFLOP/s in products, "
        f"{reached.scores:.0%} in scores: {reached.source}"
    )
    mixed = is_mixture_of_experts(profile)
    if mixed:
        peak *= rates.MOE_FACTOR
        source += f"; mixture of experts × {rates.MOE_FACTOR}"
    slower, reason = rates.rate_share(gpu, resolve_dtypes(recipe).compute)
    peak *= slower
    if reason:
        source += f"; {reason} × {slower:.3g}"
    flops = micro_batch_flops(profile=profile, recipe=recipe, micro_batch=1, seq_len=seq_len)
    products = flops.executed - flops.executed_scores
    needed = flops.executed_scores - flops.repeated_scores
    moved = _moved_bytes(profile, recipe, seq_len, reached)
    if flops.is_eager:
        # Plain batched products, and every score goes through memory.
        scores = flops.executed_scores / (reached.products * peak)
        pairs = flops.executed_scores / (12 * rates.EAGER_HEAD_SIZE)
        moved += rates.EAGER_BYTES_PER_PAIR * pairs
    else:
        repeated = 3 * rates.SCORES_FORWARD_SHARE * flops.repeated_scores
        scores = (needed + repeated) / (reached.scores * peak)
    formula = (
        f"{products:.4g} FLOP in products + {flops.executed_scores:.4g} in scores + "
        f"{moved / 1e9:.3g} GB element-wise at {bandwidth:g} GB/s; {flops.convention}"
    )
    if reason:
        formula += f"; {reason}: {slower:.3g} of the 16-bit rate"
    return Compute(
        sequence_seconds=products / (reached.products * peak) + scores + moved / (bandwidth * 1e9),
        floor_seconds=rates.LAUNCH_FLOOR_SECONDS[recipe.checkpointing] * profile.num_layers,
        dequantise_seconds=rates.NF4_SECONDS_PER_BILLION
        * (quantised_params(profile, recipe) / 1e9)
        * (rates.NF4_REFERENCE_GB_PER_S / bandwidth),
        model_flops=flops.model,
        convention=flops.convention,
        formula=formula,
        source=source,
        is_measured=reached.is_measured and not (mixed or reason or flops.is_eager),
    )


def quantised_params(profile: ActivationProfile, recipe: Recipe) -> int:
    """Return how many weights the recipe holds in NF4."""
    if recipe.method is not Method.QLORA:
        return 0
    return sum(profile.stages[index].quantisable_params for index in profile.order)


def _moved_bytes(
    profile: ActivationProfile, recipe: Recipe, seq_len: int, reached: rates.Efficiency
) -> float:
    """Return bytes that one sequence moves in element-wise work and around the logits.

    The last stage is taken to be a head alone: one row of ``hidden_size`` for each vocabulary
    entry. A model without one multiplies nothing there, and has no logits to move.
    """
    passes = 4 / 3 if recipe.checkpointing is Checkpointing.FULL else 1.0
    head = profile.stages[profile.order[-1]].flops_params
    vocabulary = head / profile.hidden_size if profile.hidden_size else 0.0
    return seq_len * (
        passes * reached.elementwise_bytes * profile.num_layers * profile.hidden_size
        + rates.LOSS_BYTES_SHARE[recipe.loss] * reached.loss_bytes * vocabulary
    )
