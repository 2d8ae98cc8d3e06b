"""One learning rate for one batch: from a base, by a rule, with the range it may be trusted in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from batchplan.errors import SpecError
from batchplan.learning.runs import PublishedRun
from batchplan.learning.scaling import (
    LORA_FACTOR,
    WIDTH_EXPONENTS,
    scale_linear,
    scale_sqrt,
    shift_beta2,
    width_rate,
)
from batchplan.spec import Caveat, Method, Optimizer
from batchplan.units import format_count

TRUSTED_KAPPA = (1 / 8, 8.0)
"""Batch ratios within which the rules are not an extrapolation: a choice, stated as one."""
LORA_LARGE_BATCH = 128
"""Sequences above which LoRA is warned about: a soft rule from LoRA Without Regret."""
PRETRAINING_TOKENS = 500_000
"""Tokens per step from which the rate of a run from scratch is told beside the fine-tuning one."""
SMALLEST_BETA2 = 0.9
"""Very large batches would push beta2 towards 0; nobody trains below this."""

LONGEST_FINE_TUNING_WARMUP = 100
"""Fine-tuning runs are often only a few hundred steps long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Where the advice starts from: a learning rate known at some batch."""

    value: float
    global_batch_size: float
    """Sequences, at the sequence length of the advice."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """A learning rate with its rule and how far it may be trusted."""

    value: float
    rule: str
    """``sqrt`` or ``linear``."""
    valid_range: tuple[float, float]
    """Global batch in sequences, from lowest to highest, that the rule is trusted for."""
    beta2: float | None
    """For Adam only: the half-life in tokens kept from the base, where it is taken to be 0.999."""
    warmup_steps: int | None
    caveats: tuple[Caveat, ...]
    base: Base


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerRule:
    """How an optimizer's learning rate follows the batch, and where it starts."""

    rule: str
    is_studied: bool
    has_beta2: bool
    """Whether it is Adam, whose beta2 keeps its half-life in tokens."""
    fine_tuning_rate: float
    """For a full fine-tune at ``REFERENCE_BATCH`` sequences."""
    origin: str
    """Whose rate that is, to go before ``of 1e-05``."""
    source: str


REFERENCE_BATCH = 16
"""Sequences. Source: ms-swift fills the global batch up to 16 when accumulation is not given."""

FINE_TUNING_BETA2 = 0.999
"""Source: torch.optim.AdamW's default, which transformers keeps."""

_SWIFT = "ms-swift 4.6 default (1e-5 full, 1e-4 LoRA)"
_ADAM = OptimizerRule(
    rule="sqrt",
    is_studied=True,
    has_beta2=True,
    fine_tuning_rate=1e-5,
    origin="ms-swift's full fine-tuning default",
    source=_SWIFT,
)
OPTIMIZER_RULES: dict[Optimizer, OptimizerRule] = {
    Optimizer.ADAMW: _ADAM,
    Optimizer.ADAMW_8BIT: _ADAM,
    Optimizer.PAGED_ADAMW_8BIT: _ADAM,
    Optimizer.ADAFACTOR: OptimizerRule(
        rule="sqrt",
        is_studied=False,
        has_beta2=False,
        fine_tuning_rate=1e-5,
        origin="ms-swift's full fine-tuning default for AdamW",
        source=f"taken over from AdamW: {_SWIFT}",
    ),
    Optimizer.SGD: OptimizerRule(
        rule="linear",
        is_studied=True,
        has_beta2=False,
        fine_tuning_rate=1e-3,
        origin="torch.optim.SGD's default",
        source="torch.optim.SGD default; no documented value for language models",
    ),
    Optimizer.SGD_MOMENTUM: OptimizerRule(
        rule="linear",
        is_studied=True,
        has_beta2=False,
        fine_tuning_rate=1e-3,
        origin="torch.optim.SGD's default",
        source="torch.optim.SGD default; no documented value for language models",
    ),
    Optimizer.LION: OptimizerRule(
        rule="sqrt",
        is_studied=False,
        has_beta2=False,
        fine_tuning_rate=3e-6,
        origin="a third of AdamW's full fine-tuning default",
        source="AdamW's over 3: Lion, https://arxiv.org/abs/2302.06675, section 5 (3-10 smaller)",
    ),
    Optimizer.MUON: OptimizerRule(
        rule="sqrt",
        is_studied=False,
        has_beta2=False,
        fine_tuning_rate=1e-3,
        origin="torch.optim.Muon's default",
        source="torch.optim.Muon default",
    ),
}


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

    Raises:
        SpecError: when the base is given twice or makes no sense.
    """
    known = OPTIMIZER_RULES[optimizer]
    tokens = global_batch_size * seq_len
    caveats: list[Caveat] = []
    base_batch_size = base_batch
    if base_lr is not None:
        if base_batch is not None and base_batch_tokens is not None:
            raise SpecError("Give the base batch in sequences or in tokens, not both.")
        if base_batch_tokens is not None:
            base_batch_size = base_batch_tokens / seq_len
        base = Base(
            value=base_lr,
            global_batch_size=global_batch_size if base_batch_size is None else base_batch_size,
            source="given",
        )
    elif base_batch is not None or base_batch_tokens is not None:
        raise SpecError("A base batch needs its base learning rate. Add --lr.")
    else:
        base = _reference(method=method, known=known)
        caveats.append(
            Caveat(
                code="learning-rate-not-tuned",
                text="A documented starting point, not tuned for your data: sweep 0.5, 1 and 2 "
                "times the value.",
            )
        )
        if hidden_size is not None and known is _ADAM:
            caveats.append(_second_opinion(method, hidden_size))
        if method is Method.FULL and known is _ADAM and tokens >= PRETRAINING_TOKENS:
            caveats.extend(_from_scratch(num_params, tokens, runs))
    scale = scale_linear if known.rule == "linear" else scale_sqrt
    if base.global_batch_size <= 0 or not math.isfinite(base.global_batch_size):
        raise SpecError(f"The base batch must be above zero, not {base.global_batch_size!r}.")
    kappa = global_batch_size / base.global_batch_size
    value = scale(learning_rate=base.value, kappa=kappa)
    low, high = TRUSTED_KAPPA
    if not low <= kappa <= high:
        caveats.append(_extrapolated(known.rule, kappa))
    elif base_lr is not None and kappa != 1:
        caveats.append(
            Caveat(
                code="learning-rate-heuristic",
                text=f"The {known.rule} rule is a heuristic: sweep 0.5, 1 and 2 times the value.",
            )
        )
    if not known.is_studied:
        caveats.append(
            Caveat(
                code="learning-rate-unstudied",
                text=f"How {optimizer.value} follows the batch is unstudied; the square-root "
                "rule is an assumption.",
            )
        )
    if method is not Method.FULL and global_batch_size > LORA_LARGE_BATCH:
        caveats.append(
            Caveat(
                code="lora-large-batch",
                text=f"LoRA loses more than full fine-tuning above {LORA_LARGE_BATCH} sequences "
                f"per step; this plan has {global_batch_size}. 32-64 are safer.",
            )
        )
    shifted = None
    if known.has_beta2:
        shifted = shift_beta2(beta2=FINE_TUNING_BETA2, kappa=kappa)
        if shifted < SMALLEST_BETA2:
            caveats.append(
                Caveat(
                    code="beta2-clamped",
                    text=f"The same half-life would need beta2 {shifted:.3g}; "
                    f"{SMALLEST_BETA2} is as low as practice goes.",
                )
            )
            shifted = SMALLEST_BETA2
    return LearningRate(
        value=value,
        rule=known.rule,
        valid_range=(low * base.global_batch_size, high * base.global_batch_size),
        beta2=shifted,
        warmup_steps=_warmup(shifted),
        caveats=tuple(caveats),
        base=base,
    )


def reference_runs(
    *, num_params: int, tokens: int, runs: Sequence[PublishedRun], limit: int = 3
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


def _reference(*, method: Method, known: OptimizerRule) -> Base:
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


def _from_scratch(num_params: int, tokens: int, runs: Sequence[PublishedRun]) -> list[Caveat]:
    tuned = [run for run in runs if run.peak_lr]
    if not tuned:
        return []
    run = min(
        tuned,
        key=lambda run: (
            abs(math.log(run.num_params / num_params)),
            abs(math.log(run.global_batch_tokens / tokens)),
        ),
    )
    rate = scale_sqrt(learning_rate=run.peak_lr or 0.0, kappa=tokens / run.global_batch_tokens)
    return [
        Caveat(
            code="learning-rate-from-scratch",
            text=f"For fine-tuning. Training from scratch would start from {run.run}'s "
            f"{run.peak_lr:g} at {format_count(run.global_batch_tokens)} tokens: {rate:.3g} here.",
        )
    ]


def _second_opinion(method: Method, hidden_size: int) -> Caveat:
    is_lora = method is not Method.FULL
    rates = sorted(
        width_rate(hidden_size=hidden_size, family=family, is_lora=is_lora)
        for family in WIDTH_EXPONENTS
    )
    return Caveat(
        code="learning-rate-second-opinion",
        text=f"tinker-cookbook's formula gives {rates[0]:.2g} to {rates[-1]:.2g} at hidden "
        f"size {hidden_size} (Llama and Qwen exponents).",
    )


def _extrapolated(rule: str, kappa: float) -> Caveat:
    if kappa > 1:
        risk = "the best rate may fall again above the noise scale; warm the batch up instead"
    else:
        risk = "the rule tends to be too low for tiny batches" if rule == "sqrt" else "sweep it"
    return Caveat(
        code="learning-rate-extrapolated",
        text=f"The batch changes by a factor of {kappa:.3g}, outside 1/8 to 8: {risk}.",
    )


def _warmup(beta2: float | None) -> int | None:
    """Return warm-up steps ``2 / (1 - beta2)``, at most ``LONGEST_FINE_TUNING_WARMUP``.

    Source: Ma and Yarats, https://arxiv.org/abs/1910.04209 (untuned linear warm-up).
    """
    if beta2 is None:
        return None
    return min(LONGEST_FINE_TUNING_WARMUP, math.ceil(2 / (1 - beta2)))
