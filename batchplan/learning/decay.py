"""AdamW's weight decay under a changed batch: over how much data it forgets.

The weights are an exponential average of updates over ``1 / (lr * decay)`` steps, so over
``B / (lr * decay)`` tokens; what should stay is that span as a share of the whole training.
Source: Bergsma et al. 2025, https://arxiv.org/abs/2505.13738 (after Wang and Aitchison).
"""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightDecay:
    """What became of the time scale when batch and learning rate changed."""

    keeping_factor: float
    """By how much the time scale grows in tokens, and what the weight decay must be multiplied by
    to keep it."""
    value: float | None = None
    """The weight decay that keeps it; None when the one before is not known."""
    time_scale_tokens: float | None = None
    """The time scale kept; None when the weight decay or a batch in tokens is not known."""
    data_share: float | None = None
    """The same over the tokens of the data; None when those are not known."""


def time_scale_tokens(
    *, learning_rate: float, weight_decay: float, tokens_per_step: float
) -> float:
    """Return the tokens over which AdamW's weights are averaged, ``B / (lr * decay)``.

    Raises:
        SpecError: when one of them is not above zero.
    """
    rate = learning_rate * weight_decay
    if not (rate > 0 and tokens_per_step > 0):
        raise SpecError(
            "A time scale needs a learning rate, a weight decay and a batch above zero, not "
            f"{learning_rate!r}, {weight_decay!r} and {tokens_per_step!r}."
        )
    return tokens_per_step / rate


def keep_time_scale(
    *,
    kappa: float,
    rate_factor: float,
    weight_decay: float | None = None,
    learning_rate: float | None = None,
    tokens_per_step: float | None = None,
    data_tokens: float | None = None,
) -> WeightDecay:
    """Return what the weight decay must become when the batch grows by ``kappa``.

    The time scale grows by ``kappa / rate_factor``, so the decay must by as much: ``sqrt(kappa)``
    with the square-root rule, ``kappa`` where the learning rate stays.

    Args:
        kappa: new batch over old.
        rate_factor: new learning rate over old.
        weight_decay: the one before.
        learning_rate: the new one.
        tokens_per_step: the new batch.
        data_tokens: tokens of the whole training.
    """
    growth = kappa / rate_factor
    if weight_decay is None:
        return WeightDecay(keeping_factor=growth)
    kept = weight_decay * growth
    span = None
    if kept and learning_rate is not None and tokens_per_step is not None:
        span = time_scale_tokens(
            learning_rate=learning_rate, weight_decay=kept, tokens_per_step=tokens_per_step
        )
    return WeightDecay(
        keeping_factor=growth,
        value=kept,
        time_scale_tokens=span,
        data_share=None if span is None or data_tokens is None else span / data_tokens,
    )
