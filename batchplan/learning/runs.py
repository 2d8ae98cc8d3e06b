"""A published training run, as a point of reference beside a user's target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from batchplan.spec import Method

NEAR = 10
"""A run is compared with when its tokens a step are within this factor."""


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


def reference_runs(
    *, num_params: int, tokens: float, runs: Sequence[PublishedRun], limit: int = 3
) -> tuple[PublishedRun, ...]:
    """Return the published runs nearest in parameters, then in tokens per step, nearest first.

    Distance is the sum of the two ratios' logarithms, so twice as large and half as large are
    equally far.
    """

    def distance(run: PublishedRun) -> float:
        return abs(math.log(run.num_params / num_params)) + abs(
            math.log(run.global_batch_tokens / tokens)
        )

    return tuple(sorted(runs, key=distance)[:limit])


def comparable_runs(
    *, method: Method, num_params: int, tokens: float, runs: Iterable[PublishedRun]
) -> tuple[PublishedRun, ...]:
    """Return the nearest runs, if what is planned is anything like pre-training.

    Adapters never are; other runs must be within ``NEAR`` times the tokens of a step.
    """
    if method is not Method.FULL:
        return ()
    near = [run for run in runs if _is_near(run, tokens)]
    return reference_runs(num_params=num_params, tokens=tokens, runs=near)


def _is_near(run: PublishedRun, tokens: float) -> bool:
    last = run.global_batch_tokens_end or run.global_batch_tokens
    return run.global_batch_tokens <= tokens * NEAR and tokens <= last * NEAR
