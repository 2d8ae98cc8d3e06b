"""What to be told about a learning rate that follows a batch."""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.learning.change import Change
from batchplan.learning.rules import TRUSTED_KAPPA
from batchplan.learning.scaling import LORA_FACTOR, shift_beta2
from batchplan.spec import Caveat, Method

LORA_LARGE_BATCH = 128
"""Sequences above which LoRA is warned about: a soft rule from LoRA Without Regret."""


def about_change(change: Change) -> Iterator[Caveat]:
    """Yield where the rule extrapolates, and what the noise scale says."""
    rule, kappa = change.known.rule, change.kappa
    low, high = TRUSTED_KAPPA
    if not low <= kappa <= high:
        yield _extrapolated(rule, kappa, is_measured=change.noise_scale is not None)
    elif change.is_given and kappa != 1:
        yield Caveat(
            code="learning-rate-heuristic",
            text=f"The {rule} rule is a heuristic: sweep 0.5, 1 and 2 times the value.",
        )
    if change.is_capped:
        yield Caveat(
            code="learning-rate-capped",
            text=f"Above the noise scale the {rule} rule ends, so a batch counts for no more than "
            "that. Its best rate may even fall again.",
        )
    if rule == "linear" and kappa > 1:
        yield Caveat(
            code="linear-needs-warmup",
            text="The linear rule needs a warm-up to the larger rate (about 5 epochs of ImageNet "
            "in its paper).",
        )
    if not change.known.is_studied:
        yield Caveat(
            code="learning-rate-unstudied",
            text=f"How {change.optimizer.value} follows the batch is unstudied; the square-root "
            "rule is an assumption.",
        )


def about_adapters(change: Change) -> Iterator[Caveat]:
    """Yield what is different about LoRA."""
    if change.method is Method.FULL:
        return
    if change.is_given:
        yield Caveat(
            code="lora-factor",
            text=f"The given rate is taken to be LoRA's. If it is a full fine-tune's, take "
            f"{LORA_FACTOR} times as much (LoRA Without Regret).",
        )
    if change.sequences is not None and change.sequences > LORA_LARGE_BATCH:
        yield Caveat(
            code="lora-large-batch",
            text=f"LoRA loses more than full fine-tuning above {LORA_LARGE_BATCH} sequences "
            f"per step; this plan has {change.sequences:,.0f}. 32-64 are safer.",
        )


def about_beta2(change: Change) -> Iterator[Caveat]:
    """Yield that the same half-life is out of practice, where it is."""
    if not change.known.is_adam:
        return
    wanted, least = shift_beta2(beta2=change.beta2, kappa=change.kappa), change.least_beta2
    if wanted < least:
        yield Caveat(
            code="beta2-clamped",
            text=f"The same half-life would need beta2 {wanted:.3g}; "
            f"{least:g} is as low as practice goes.",
        )


def _extrapolated(rule: str, kappa: float, *, is_measured: bool) -> Caveat:
    if kappa > 1 and is_measured:
        risk = "warm the batch up instead"
    elif kappa > 1:
        risk = "the best rate may fall again above the noise scale; warm the batch up instead"
    elif rule == "sqrt":
        risk = "the rule tends to be too low for tiny batches; try the unchanged rate too"
    else:
        risk = "sweep it"
    return Caveat(
        code="learning-rate-extrapolated",
        text=f"The batch changes by a factor of {kappa:.3g}, outside 1/8 to 8: {risk}.",
    )
