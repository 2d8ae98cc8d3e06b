"""Where a learning rate starts from: the user's own, or a documented default to fine-tune with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchplan.errors import SpecError
from batchplan.learning.runs import PublishedRun
from batchplan.learning.scaling import LORA_FACTOR, WIDTH_EXPONENTS, scale_sqrt, width_rate
from batchplan.spec import Caveat, Method, Optimizer
from batchplan.units import format_count

REFERENCE_BATCH = 16
"""Sequences. Source: ms-swift fills the global batch up to 16 when accumulation is not given."""
PRETRAINING_TOKENS = 500_000
"""Tokens per step from which the rate of a run from scratch is told beside the fine-tuning one."""
GIVEN = "given"
"""Source of a base that the user knows to work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Where the advice starts from: a learning rate known at some batch."""

    value: float
    global_batch_size: float
    """In the unit of the advice: sequences at its sequence length, as a rule."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerRule:
    """How an optimizer's learning rate follows the batch, and where it starts."""

    rule: str
    """``sqrt`` or ``linear``."""
    is_studied: bool
    is_adam: bool
    """Whether beta2 keeps its half-life in tokens, and weight decay is AdamW's."""
    fine_tuning_rate: float
    """For a full fine-tune at ``REFERENCE_BATCH`` sequences."""
    origin: str
    """Whose rate that is, to go before ``of 1e-05``."""
    source: str


_SWIFT = "ms-swift 4.6 default (1e-5 full, 1e-4 LoRA)"
_ADAM = OptimizerRule(
    rule="sqrt",
    is_studied=True,
    is_adam=True,
    fine_tuning_rate=1e-5,
    origin="ms-swift's full fine-tuning default",
    source=_SWIFT,
)
_SGD = OptimizerRule(
    rule="linear",
    is_studied=True,
    is_adam=False,
    fine_tuning_rate=1e-3,
    origin="torch.optim.SGD's default",
    source="torch.optim.SGD default; no documented value for language models",
)
OPTIMIZER_RULES: dict[Optimizer, OptimizerRule] = {
    Optimizer.ADAMW: _ADAM,
    Optimizer.ADAMW_8BIT: _ADAM,
    Optimizer.PAGED_ADAMW_8BIT: _ADAM,
    Optimizer.ADAFACTOR: OptimizerRule(
        rule="sqrt",
        is_studied=False,
        is_adam=False,
        fine_tuning_rate=1e-5,
        origin="ms-swift's full fine-tuning default for AdamW",
        source=f"taken over from AdamW: {_SWIFT}",
    ),
    Optimizer.SGD: _SGD,
    Optimizer.SGD_MOMENTUM: _SGD,
    Optimizer.LION: OptimizerRule(
        rule="sqrt",
        is_studied=False,
        is_adam=False,
        fine_tuning_rate=3e-6,
        origin="a third of AdamW's full fine-tuning default",
        source="AdamW's over 3: Lion, https://arxiv.org/abs/2302.06675, section 5 (3-10 smaller)",
    ),
    Optimizer.MUON: OptimizerRule(
        rule="sqrt",
        is_studied=False,
        is_adam=False,
        fine_tuning_rate=1e-3,
        origin="torch.optim.Muon's default",
        source="torch.optim.Muon default",
    ),
}


def given_base(
    *,
    base_lr: float | None,
    base_batch: float | None,
    base_batch_tokens: float | None,
    global_batch_size: float,
    seq_len: int,
) -> Base | None:
    """Return the user's own base, or None when there is none.

    The rate is taken to be for this very batch when no other is named.

    Args:
        base_lr: a learning rate known to work.
        base_batch: sequences per step at which it does.
        base_batch_tokens: the same in tokens.
        global_batch_size: sequences per step of the advice.
        seq_len: tokens per sequence of the advice.

    Raises:
        SpecError: when the batch is given twice, without its rate, or is not above zero.
    """
    if base_batch is not None and base_batch_tokens is not None:
        raise SpecError("Give the base batch in sequences or in tokens, not both.")
    if base_lr is None:
        if base_batch is not None or base_batch_tokens is not None:
            raise SpecError("A base batch needs its base learning rate. Add --lr.")
        return None
    if base_batch_tokens is not None:
        base_batch = base_batch_tokens / seq_len
    size = global_batch_size if base_batch is None else base_batch
    if size <= 0 or not math.isfinite(size):
        raise SpecError(f"The base batch must be above zero, not {size!r}.")
    return Base(value=base_lr, global_batch_size=size, source=GIVEN)


def documented_base(*, method: Method, optimizer: Optimizer) -> Base:
    """Return a trainer's documented rate for fine-tuning; ten times it for adapters."""
    known = OPTIMIZER_RULES[optimizer]
    if method is Method.FULL:
        return Base(
            value=known.fine_tuning_rate, global_batch_size=REFERENCE_BATCH, source=known.source
        )
    return Base(
        value=LORA_FACTOR * known.fine_tuning_rate,
        global_batch_size=REFERENCE_BATCH,
        source=f"{LORA_FACTOR} × {known.origin} of {known.fine_tuning_rate:g} "
        "(LoRA Without Regret)",
    )


def about_documented_base(
    *,
    method: Method,
    optimizer: Optimizer,
    num_params: int,
    hidden_size: int | None,
    tokens: float,
    runs: Sequence[PublishedRun],
) -> Iterator[Caveat]:
    """Yield what to know of a base that nobody tuned: other opinions of where to start."""
    yield Caveat(
        code="learning-rate-not-tuned",
        text="A documented starting point, not tuned for your data: sweep 0.5, 1 and 2 "
        "times the value.",
    )
    if not OPTIMIZER_RULES[optimizer].is_adam:
        return
    if hidden_size is not None:
        yield _second_opinion(method, hidden_size)
    if method is Method.FULL and tokens >= PRETRAINING_TOKENS:
        yield from _from_scratch(num_params, tokens, runs)


def _from_scratch(num_params: int, tokens: float, runs: Sequence[PublishedRun]) -> Iterator[Caveat]:
    """Yield the rate of the nearest published run, scaled to this batch."""
    tuned = [(run, run.peak_lr) for run in runs if run.peak_lr]
    if not tuned:
        return
    run, rate = min(
        tuned,
        key=lambda known: (
            abs(math.log(known[0].num_params / num_params)),
            abs(math.log(known[0].global_batch_tokens / tokens)),
        ),
    )
    scaled = scale_sqrt(learning_rate=rate, kappa=tokens / run.global_batch_tokens)
    yield Caveat(
        code="learning-rate-from-scratch",
        text=f"For fine-tuning. Training from scratch would start from {run.run}'s "
        f"{rate:g} at {format_count(run.global_batch_tokens)} tokens: {scaled:.3g} here.",
    )


def _second_opinion(method: Method, hidden_size: int) -> Caveat:
    rates = sorted(
        width_rate(hidden_size=hidden_size, family=family, is_lora=method is not Method.FULL)
        for family in WIDTH_EXPONENTS
    )
    return Caveat(
        code="learning-rate-second-opinion",
        text=f"tinker-cookbook's formula gives {rates[0]:.2g} to {rates[-1]:.2g} at hidden "
        f"size {hidden_size} (Llama and Qwen exponents).",
    )
