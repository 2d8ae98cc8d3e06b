"""What accumulated gradients should be, and which mistake made them what they are.

The gradient of a window of micro-batches is a weighted sum of the gradients of their mean losses.
With ``n_j`` target tokens in micro-batch j and ``N`` in the window, over all its micro-batches and
ranks, the big batch has the weights ``n_j / N``. Every common mistake has weights of its own, so
the weights that a loop really used say which one it makes. Source: the rule and its history,
https://huggingface.co/blog/gradient_accumulation (2024-10-16); the signatures are derived here.
Left out: what is no weighted sum of micro-batches at all, such as BatchNorm's; it has a residual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import sqrt

GRADIENT_TOLERANCE = 1e-5
"""Relative L2 distance of two fp32 gradients that differ by the order of their sums alone."""
COSINE_TOLERANCE = 1e-6
"""Below 1, of the same two."""
WEIGHT_TOLERANCE = 1e-3
"""Relative: a weight found by least squares is that of a hypothesis. Least squares on fp32
gradients finds weights to about 1e-5; the finest mistake, one label in a sequence, is above this
up to 1,000 tokens."""
_NEGLIGIBLE = 0.1
"""Of the largest weight: smaller ones are compared on this one's scale."""
BF16_ROUND_OFF = 2.0**-9
"""Typical relative error of rounding to 8 bits of significand."""


def correct_weights(targets: Sequence[int]) -> tuple[float, ...]:
    """Return the weights ``n_j / N`` of mean losses that make the mean over all target tokens.

    >>> correct_weights([10, 30])
    (0.25, 0.75)
    """
    total = sum(targets)
    return tuple(each / total for each in targets)


def token_weight_ratios(targets: Sequence[int]) -> tuple[float, ...]:
    """Return by how much a mean of means over- or underweights the tokens of each micro-batch.

    A token of micro-batch j gets ``1 / (K n_j)`` where it should get ``1 / N``.

    >>> token_weight_ratios([10, 30])
    (2.0, 0.6666666666666666)
    """
    total = sum(targets)
    return tuple(total / (len(targets) * each) for each in targets)


def weighted_loss(losses: Sequence[float], weights: Sequence[float]) -> float:
    """Return the loss of a window from the mean losses of its micro-batches.

    >>> weighted_loss([2, 1], [0.5, 0.5]), weighted_loss([2, 1], correct_weights([10, 30]))
    (1.5, 1.25)
    """
    return sum(loss * weight for loss, weight in zip(losses, weights, strict=True))


def buffer_error_limit(accum_steps: int) -> float:
    """Return the relative error that ``accum_steps`` sums in a bf16 buffer are expected to make.

    Every sum rounds once, independently of the others: ``sqrt(K) * 2^-9``.

    >>> buffer_error_limit(4)
    0.00390625
    """
    return sqrt(accum_steps) * BF16_ROUND_OFF


class Fault(StrEnum):
    """A mistake of a training loop, by its name in answers."""

    MISSING_DIVISION = "missing-division"
    DIVIDED_TWICE = "divided-twice"
    SUMMED_TOKENS = "summed-tokens"
    MEAN_OF_MEANS = "mean-of-means"
    CONFIGURED_STEPS = "configured-steps"
    LAST_WINDOW_DROPPED = "last-window-dropped"
    FIRST_LABELS = "first-labels"
    RANK_TOKENS = "rank-tokens"
    RANK_FACTOR = "rank-factor"
    ZERO_GRAD_FORGOTTEN = "zero-grad-forgotten"
    ZERO_GRAD_EVERY_MICRO_BATCH = "zero-grad-every-micro-batch"
    CLIP_EVERY_MICRO_BATCH = "clip-every-micro-batch"
    CLIP_MISSING = "clip-missing"
    SCHEDULER_EVERY_MICRO_BATCH = "scheduler-every-micro-batch"
    STEP_EVERY_MICRO_BATCH = "step-every-micro-batch"


TEXTS: dict[Fault, str] = {
    Fault.MISSING_DIVISION: "the loss is not divided by K: gradients are K times too large",
    Fault.DIVIDED_TWICE: "the loss is divided twice: gradients are K times too small",
    Fault.SUMMED_TOKENS: "token losses are summed and never divided by their number",
    Fault.MEAN_OF_MEANS: "every micro-batch counts the same however many target tokens it has; "
    "divide the summed token loss by the target tokens of the whole window",
    Fault.CONFIGURED_STEPS: "a short last window is divided by the configured K, not by its own",
    Fault.LAST_WINDOW_DROPPED: "no step is taken after a short last window: its micro-batches are "
    "lost, or are added to the next epoch's first window",
    Fault.FIRST_LABELS: "labels are counted before the shift: the first of every sequence, which "
    "nothing predicts, makes gradients too small by one in its length",
    Fault.RANK_TOKENS: "every rank divides by its own target tokens; sum them over ranks first",
    Fault.RANK_FACTOR: "the factor of the number of ranks is missing or applied twice: averaging "
    "over ranks divides by it once",
    Fault.ZERO_GRAD_FORGOTTEN: "gradients of earlier steps are still in the buffer: zero_grad is "
    "missing after the step",
    Fault.ZERO_GRAD_EVERY_MICRO_BATCH: "only the last micro-batch is left: zero_grad runs after "
    "every micro-batch",
    Fault.CLIP_EVERY_MICRO_BATCH: "the norm is clipped after every micro-batch, so early ones are "
    "shrunk more often; clip once, before the step",
    Fault.CLIP_MISSING: "the gradient is not clipped to the norm that was asked for",
    Fault.SCHEDULER_EVERY_MICRO_BATCH: "the scheduler steps with every micro-batch: the learning "
    "rate runs K times too fast",
    Fault.STEP_EVERY_MICRO_BATCH: "the optimizer steps with every micro-batch: nothing accumulates",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one optimizer step was given: micro-batches, and the weights found in its gradient."""

    targets: tuple[int, ...]
    """Target tokens of every micro-batch, of all ranks."""
    weights: tuple[float, ...]
    """Found by least squares on the micro-batches' own gradients."""
    accum_steps: int
    """K as configured."""
    num_rows: int = 0
    """Sequences of all micro-batches; 0 is not known."""
    num_ranks: int = 1
    ranks: tuple[int, ...] = ()
    """Rank of every micro-batch; empty is all on one."""
    earlier_weights: tuple[float, ...] = field(default=())
    """Of the micro-batches of earlier windows, which should have none."""

    @property
    def actual_steps(self) -> int:
        """Micro-batches a rank really ran."""
        return len(self.targets) // self.num_ranks

    def of_rank(self, position: int) -> int:
        """Return the target tokens of the rank that ran the micro-batch at ``position``."""
        if not self.ranks:
            return sum(self.targets)
        rank = self.ranks[position]
        return sum(n for n, other in zip(self.targets, self.ranks, strict=True) if other == rank)


Weights = Callable[[Window], Sequence[float]]


def _scaled(factor: Callable[[Window], float]) -> Weights:
    return lambda window: [factor(window) * weight for weight in correct_weights(window.targets)]


def _even(factor: Callable[[Window], float]) -> Weights:
    """Weigh every micro-batch alike; ranks are averaged."""
    return lambda window: [factor(window) / window.num_ranks] * len(window.targets)


def _last_alone(window: Window) -> Sequence[float]:
    found = [0.0] * len(window.targets)
    for position in range(len(found) - window.num_ranks, len(found)):
        found[position] = window.weights[position] or 1.0
    return found


# In the order in which they are tried; the first that has the weights found gives its name.
_SIGNATURES: tuple[tuple[Fault, Weights], ...] = (
    (Fault.MISSING_DIVISION, _even(lambda _: 1.0)),
    # Multiplied by the ranks to undo their average, as if it had been divided by all tokens.
    (Fault.MISSING_DIVISION, _even(lambda w: float(w.num_ranks))),
    (Fault.MISSING_DIVISION, _scaled(lambda w: w.accum_steps)),
    (Fault.DIVIDED_TWICE, _even(lambda w: 1.0 / w.actual_steps / w.accum_steps)),
    (Fault.DIVIDED_TWICE, _scaled(lambda w: 1.0 / w.accum_steps)),
    (Fault.DIVIDED_TWICE, _scaled(lambda w: 1.0 / w.actual_steps)),
    (Fault.CONFIGURED_STEPS, _scaled(lambda w: w.actual_steps / w.accum_steps)),
    (Fault.MEAN_OF_MEANS, _even(lambda w: 1.0 / w.actual_steps)),
    (Fault.CONFIGURED_STEPS, _even(lambda w: 1.0 / w.accum_steps)),
    (Fault.SUMMED_TOKENS, lambda w: [n / w.num_ranks for n in w.targets]),
    (
        Fault.RANK_TOKENS,
        lambda w: [n / w.of_rank(j) / w.num_ranks for j, n in enumerate(w.targets)],
    ),
    (Fault.RANK_FACTOR, _scaled(lambda w: 1.0 / w.num_ranks)),
    (Fault.RANK_FACTOR, _scaled(lambda w: float(w.num_ranks))),
    (Fault.FIRST_LABELS, _scaled(lambda w: sum(w.targets) / (sum(w.targets) + w.num_rows))),
    (Fault.ZERO_GRAD_EVERY_MICRO_BATCH, _last_alone),
)


def name_fault(window: Window) -> Fault | None:
    """Return the mistake that the weights of a window give away; None when they are right.

    None also where they are wrong in a way that no known mistake explains. At equal lengths the
    mean of means is right, and a full window cannot tell which K divides it: look at several. With
    K of 2, several mistakes have the same factor.
    """
    if any(
        abs(weight) > WEIGHT_TOLERANCE * max(window.weights) for weight in window.earlier_weights
    ):
        return Fault.ZERO_GRAD_FORGOTTEN
    if _is_near(window.weights, correct_weights(window.targets)):
        return None
    return next(
        (fault for fault, weights in _SIGNATURES if _is_near(window.weights, weights(window))), None
    )


def name_clip_fault(
    window: Window, unclipped: Window, *, clips: int, norm: float, max_norm: float
) -> Fault | None:
    """Return how clipping went wrong; None when the window was clipped once, as a whole.

    Args:
        window: with the weights found after clipping.
        unclipped: the same loop's without it.
        clips: times a norm was clipped, per window.
        norm: of the gradient that the optimizer got.
        max_norm: it should have; the window's own is above it.
    """
    pairs = zip(window.weights, unclipped.weights, strict=True)
    ratios = [found / whole for found, whole in pairs if whole]
    if clips > 1 or not _is_near(ratios, [max(ratios)] * len(ratios)):
        return Fault.CLIP_EVERY_MICRO_BATCH
    if norm > max_norm * (1 + WEIGHT_TOLERANCE):
        return Fault.CLIP_MISSING
    return None


def name_count_fault(
    *,
    optimizer_steps: int,
    scheduler_steps: int,
    num_windows: int,
    num_micro_batches: int,
    accum_steps: int,
) -> Fault | None:
    """Return what steps wrongly; None when both step once a window, or no mistake is known.

    A run of one micro-batch a window shows nothing.
    """
    if optimizer_steps == num_micro_batches > num_windows:
        return Fault.STEP_EVERY_MICRO_BATCH
    if scheduler_steps >= num_micro_batches > num_windows:
        return Fault.SCHEDULER_EVERY_MICRO_BATCH
    if optimizer_steps == num_micro_batches // accum_steps < num_windows:
        return Fault.LAST_WINDOW_DROPPED
    return None


def _is_near(found: Sequence[float], expected: Sequence[float]) -> bool:
    scale = max(abs(weight) for weight in expected)
    return all(
        abs(a - b) <= WEIGHT_TOLERANCE * max(abs(b), _NEGLIGIBLE * scale)
        for a, b in zip(found, expected, strict=True)
    )
