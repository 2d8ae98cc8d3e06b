"""One learning rate for one batch: from a base, by a rule, with the range it may be trusted in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from batchplan.learning.change import Change
from batchplan.learning.decay import WeightDecay, keep_time_scale
from batchplan.learning.epoch import within_epoch
from batchplan.learning.rate import LearningRate, NoiseCost
from batchplan.learning.rules import TRUSTED_KAPPA
from batchplan.learning.runs import PublishedRun
from batchplan.learning.scaling import (
    examples_multiplier,
    half_life_tokens,
    scale_linear,
    scale_sqrt,
    shift_beta2,
    steps_multiplier,
)
from batchplan.learning.start import (
    PRETRAINING_TOKENS,
    about_documented_base,
    documented_base,
    given_base,
)
from batchplan.learning.warnings import about_adapters, about_beta2, about_change
from batchplan.spec import Method, Optimizer

__all__ = ["PRETRAINING_TOKENS", "LearningRate", "advise", "rate_for"]

LONGEST_FINE_TUNING_WARMUP = 100
"""Fine-tuning runs are often only a few hundred steps long."""

_SCALE = {"linear": scale_linear, "sqrt": scale_sqrt}


def advise(
    *,
    method: Method,
    optimizer: Optimizer,
    num_params: int,
    hidden_size: int | None,
    global_batch_size: int,
    seq_len: int,
    base_lr: float | None = None,
    base_batch: float | None = None,
    base_batch_tokens: float | None = None,
    runs: Sequence[PublishedRun] = (),
    data_tokens: int | None = None,
    noise_scale: float | None = None,
    weight_decay: float | None = None,
) -> LearningRate:
    """Return the learning rate for a global batch.

    The base is what the user gave (``base_lr`` at ``base_batch`` sequences or
    ``base_batch_tokens``; at this very batch when neither is given), or else a trainer's default
    for fine-tuning. It moves by the optimizer's rule; Adam's beta2 keeps its half-life in tokens.
    Trained weights bear far smaller steps than fresh ones, so a published pre-training run is
    never the base: it is told beside, for who starts from scratch.

    Args:
        method: full, LoRA or QLoRA.
        optimizer: decides the rule.
        num_params: of the whole model, to find the nearest published run for the note.
        hidden_size: for a second opinion by width; None leaves that out.
        global_batch_size: sequences per optimizer step.
        seq_len: tokens per sequence.
        base_lr: the user's learning rate.
        base_batch: sequences per step at which ``base_lr`` was used.
        base_batch_tokens: the same in tokens.
        runs: published runs to compare with.
        data_tokens: tokens of the data, for the steps of an epoch.
        noise_scale: measured, in sequences; the rule stops there.
        weight_decay: at the base.

    Raises:
        SpecError: when the base is given twice or makes no sense.
    """
    tokens = global_batch_size * seq_len
    given = given_base(
        base_lr=base_lr,
        base_batch=base_batch,
        base_batch_tokens=base_batch_tokens,
        global_batch_size=global_batch_size,
        seq_len=seq_len,
    )
    change = Change(
        base=given or documented_base(method=method, optimizer=optimizer),
        batch=global_batch_size,
        optimizer=optimizer,
        method=method,
        sequences=global_batch_size,
        tokens=tokens,
        noise_scale=noise_scale,
    )
    rate = rate_for(change, data_tokens=data_tokens, weight_decay=weight_decay)
    if given is not None:
        return rate
    about_base = about_documented_base(
        method=method,
        optimizer=optimizer,
        num_params=num_params,
        hidden_size=hidden_size,
        tokens=tokens,
        runs=runs,
    )
    return replace(rate, caveats=(*about_base, *rate.caveats))


def rate_for(
    change: Change, *, data_tokens: int | None = None, weight_decay: float | None = None
) -> LearningRate:
    """Return the learning rate for a batch that changes from a known base.

    Args:
        change: base and batch, in any one unit.
        data_tokens: tokens of the data, for the steps of an epoch; needs ``change.tokens``.
        weight_decay: at the base.

    Raises:
        SpecError: when a number makes no sense.
    """
    base, rule = change.base, change.known.rule
    value = _SCALE[rule](learning_rate=base.value, kappa=change.capped_kappa)
    beta2 = _beta2(change)
    rate = LearningRate(
        value=value,
        rule=rule,
        valid_range=_valid_range(change),
        beta2=beta2,
        warmup_steps=_warmup(beta2),
        caveats=(*about_change(change), *about_adapters(change), *about_beta2(change)),
        base=base,
        half_life_tokens=_half_life(beta2, change.tokens),
        weight_decay=_weight_decay(change, value, weight_decay, data_tokens),
        noise=_noise(change),
    )
    if data_tokens is None or change.tokens is None:
        return rate
    return within_epoch(rate, data_tokens=data_tokens, tokens_per_step=change.tokens)


def _valid_range(change: Change) -> tuple[float, float]:
    """Return the batches the rule is trusted for; it ends at the noise scale."""
    base = change.base.global_batch_size
    low, high = (base * factor for factor in TRUSTED_KAPPA)
    if change.noise_scale is not None:
        high = min(high, max(change.noise_scale, base))
    return low, high


def _beta2(change: Change) -> float | None:
    if not change.known.is_adam:
        return None
    return max(shift_beta2(beta2=change.beta2, kappa=change.kappa), change.least_beta2)


def _half_life(beta2: float | None, tokens: float | None) -> float | None:
    if beta2 is None or tokens is None or beta2 == 1:
        return None
    return half_life_tokens(beta2=beta2, tokens_per_step=tokens)


def _weight_decay(
    change: Change, rate: float, weight_decay: float | None, data_tokens: int | None
) -> WeightDecay | None:
    """Return what keeps AdamW's time scale, where the user's own base moves."""
    is_asked = change.is_given and (change.kappa != 1 or weight_decay is not None)
    if not (change.known.is_adam and is_asked):
        return None
    return keep_time_scale(
        kappa=change.kappa,
        rate_factor=rate / change.base.value,
        weight_decay=weight_decay,
        learning_rate=rate,
        tokens_per_step=change.tokens,
        data_tokens=data_tokens,
    )


def _noise(change: Change) -> NoiseCost | None:
    if change.noise_scale is None:
        return None
    ratio = change.batch / change.noise_scale
    return NoiseCost(
        noise_scale=change.noise_scale,
        ratio=ratio,
        steps_multiplier=steps_multiplier(ratio),
        examples_multiplier=examples_multiplier(ratio),
    )


def _warmup(beta2: float | None) -> int | None:
    """Return warm-up steps ``2 / (1 - beta2)``, at most ``LONGEST_FINE_TUNING_WARMUP``.

    Source: Ma and Yarats, https://arxiv.org/abs/1910.04209 (untuned linear warm-up).
    """
    if beta2 is None:
        return None
    if beta2 == 1:
        return LONGEST_FINE_TUNING_WARMUP
    return min(LONGEST_FINE_TUNING_WARMUP, math.ceil(2 / (1 - beta2)))
