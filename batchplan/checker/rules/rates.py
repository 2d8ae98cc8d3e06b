"""Learning rates and warm-ups that do not fit the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from batchplan.checker.rule import Remark, Rule, about
from batchplan.checker.subject import Subject
from batchplan.configfile import Severity
from batchplan.learning import LearningRate, advise
from batchplan.learning.start import OPTIMIZER_RULES
from batchplan.spec import Method, Optimizer
from batchplan.units import format_count

FAR = 10
"""Times the advised rate from which a rate is worth a question. A choice: sweeps that papers
publish span a factor of about ten around their best."""
_FROM_SCRATCH = ("torchtitan", "lightning")
"""Mostly pre-train, or train what is no language model: nothing to compare a rate with."""


def _warmup(subject: Subject) -> Iterator[Remark]:
    """A warm-up that is as long as the run never reaches its learning rate.

    Source: transformers optimization.py, get_cosine_schedule_with_warmup and its kin.
    """
    warmup, steps = subject.value("warmup_steps"), _most_steps(subject)
    if not _is_above_zero(warmup) or not _is_above_zero(steps) or warmup < 1 or warmup < steps:
        return
    yield about(
        subject,
        "warmup_steps",
        f"Warm-up of {warmup:g} steps in a run of {steps:g}: the learning rate is never reached.",
        fix=f"Set it to {max(1, int(steps) // 20)}, 5 % of the run, or less.",
        severity=Severity.ERROR if warmup > steps else None,
    )


def _most_steps(subject: Subject) -> Any:
    """Return the steps of the run, or the most that it can have.

    Source: torchtune recipes/lora_finetune_distributed.py, setup: epochs end at
    ``max_steps_per_epoch``, and the schedule counts all of them.
    """
    steps, each = subject.value("max_steps"), subject.said("max_steps_per_epoch")
    if _is_above_zero(steps) or not (subject.is_on("torchtune") and _is_above_zero(each)):
        return steps
    return each * (subject.value("epochs") or 1)


def _far_off(subject: Subject) -> Iterator[Remark]:
    """A rate far from documented ones for the method and optimizer, moved to this batch.

    Only of Adam's family are there any for language models.

    Source: ``batchplan lr``: ms-swift's defaults, moved by the square-root rule.
    """
    rate = subject.value("learning_rate")
    if subject.is_on(*_FROM_SCRATCH) or not _is_above_zero(rate):
        return
    advice = _advice(subject)
    if advice is None or advice.value / FAR <= rate <= advice.value * FAR:
        return
    factor = max(rate / advice.value, advice.value / rate)
    way = "above" if rate > advice.value else "below"
    batch = subject.run.global_batch_size
    assert advice.base is not None
    yield about(
        subject,
        "learning_rate",
        f"Learning rate {rate:g} is {factor:,.0f} times {way} the {advice.value:.2g} documented "
        f"for fine-tuning with {subject.value('method')} and {subject.value('optimizer')} at "
        f"{format_count(batch)} sequences a step ({advice.base.source}; {advice.rule} rule).",
        fix=f"Start from {advice.value:.2g} and sweep 0.5, 1 and 2 times; training from scratch "
        "bears more.",
    )


def _advice(subject: Subject) -> LearningRate | None:
    try:
        method, optimizer = Method(subject.value("method")), Optimizer(subject.value("optimizer"))
    except ValueError:
        return None
    if not OPTIMIZER_RULES[optimizer].is_adam:
        return None
    return advise(
        method=method,
        optimizer=optimizer,
        num_params=subject.num_params or 1,  # only finds published runs, of which there are none
        hidden_size=None,
        global_batch_size=subject.run.global_batch_size,
        seq_len=subject.run.seq_len or 1,
    )


def _beta2(subject: Subject) -> Iterator[Remark]:
    """Adam's beta2 must be below 1.

    Source: torch optim/adam.py, Adam.__init__ raises ValueError.
    """
    beta2 = subject.value("beta2")
    if isinstance(beta2, int | float) and not 0 <= beta2 < 1:
        yield about(
            subject,
            "beta2",
            f"beta2 {beta2:g} is not in [0, 1): torch refuses it.",
            fix="Set 0.999.",
        )


def _is_above_zero(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


RULES = (
    Rule(
        code="warmup-longer-than-training",
        severity=Severity.WARNING,
        title="A warm-up as long as the run",
        source="transformers optimization.py, get_cosine_schedule_with_warmup",
        look=_warmup,
    ),
    Rule(
        code="learning-rate-out-of-scale",
        severity=Severity.WARNING,
        title="A learning rate far from documented ones for such a batch",
        source="batchplan lr: documented defaults, moved by the batch",
        look=_far_off,
    ),
    Rule(
        code="beta2-out-of-range",
        severity=Severity.ERROR,
        title="A beta2 that torch refuses",
        source="torch optim/adam.py, Adam.__init__",
        look=_beta2,
    ),
)
