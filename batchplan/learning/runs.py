"""A published training run, as a point of reference beside a user's target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRun:
    """What a paper or a released config says about its batch and learning rate."""

    run: str
    num_params: int
    """Parameters of the whole model, rounded as its name rounds them."""
    global_batch_tokens: int
    """Tokens per optimizer step; the first ones where the batch grew."""
    global_batch_tokens_end: int | None
    """Tokens per optimizer step at the end; None when the batch stayed the same."""
    seq_len: int | None
    peak_lr: float | None
    optimizer: str
    source: str
    note: str
    """How sure it is, and what was derived."""
