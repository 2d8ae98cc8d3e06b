"""What papers found to be a good or a critical batch, by model and data size, side by side.

All were fitted on pre-training from scratch. They disagree, and the spread is the message:
nothing here decides anything. *Optimal* is the batch with the lowest loss for the compute;
*critical* is the one above which more devices stop paying.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from batchplan.errors import SpecError
from batchplan.learning.certainty import Certainty
from batchplan.learning.laws import (
    MERRILL_FROM,
    MERRILL_PLATEAU,
    deepseek_batch,
    deepseek_compute,
    deepseek_rate,
    kaplan_critical,
    power_lines_critical,
    power_lines_optimal,
    step_law_batch,
    step_law_rate,
)
from batchplan.spec import Method

OPTIMAL, CRITICAL = "optimal", "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What the references are asked about."""

    data_tokens: float | None
    num_params: float | None = None
    """Without embeddings where that is known."""
    compute: float | None = None
    """FLOPs by ``deepseek_compute``."""
    loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One published law."""

    name: str
    quantity: str
    """``optimal`` or ``critical``."""
    formula: str
    fitted: str
    """What it was fitted on."""
    source: str
    certainty: Certainty
    batch: Callable[[Training], float | None]
    """Tokens per step; None where what it needs is not known."""
    in_range: Callable[[Training], bool | None]
    """None where the range or what it needs is not known."""
    rate: Callable[[Training], float | None] = lambda _: None
    """The peak learning rate it goes with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRow:
    """What one law gives."""

    name: str
    quantity: str
    batch_tokens: float
    learning_rate: float | None
    """For training from scratch; None where the law gives none."""
    in_range: bool | None
    """Whether it was fitted there; None where that is not known."""
    formula: str
    fitted: str
    source: str
    certainty: Certainty


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far the laws for one quantity are apart."""

    quantity: str
    low_tokens: float
    high_tokens: float
    ratio: float
    """Highest over lowest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReferences:
    """What the papers say of one training."""

    rows: tuple[ReferenceRow, ...]
    spreads: tuple[Spread, ...]
    """One for each quantity that any row gives."""
    is_fine_tuning: bool
    """Whether the training looks like a fine-tune, which no law was fitted on."""

    def low(self, quantity: str) -> ReferenceRow | None:
        """Return the row with the smallest batch of a quantity, None when there is none."""
        rows = [row for row in self.rows if row.quantity == quantity]
        return min(rows, key=lambda row: row.batch_tokens, default=None)


def batch_references(
    *,
    method: Method,
    data_tokens: float | None,
    num_params: float | None = None,
    non_embedding_params: float | None = None,
    seq_len: int | None = None,
    hidden_size: int | None = None,
    num_layers: int | None = None,
    loss: float | None = None,
) -> BatchReferences:
    """Return every law that what is known suffices for, with their spread.

    Args:
        method: adapters are always a fine-tune.
        data_tokens: tokens of the whole training.
        num_params: of the whole model.
        non_embedding_params: without embeddings, what the laws mean; ``num_params`` stands in.
        seq_len: tokens per sequence; with the next two for DeepSeek's attention FLOPs.
        hidden_size: of the model.
        num_layers: of the model.
        loss: reached or expected, in nats per token, for Kaplan's law.

    Raises:
        SpecError: when a size is not above zero, or nothing is known that a law needs.
    """
    if data_tokens is None and loss is None:
        raise SpecError("Critical batches follow from the size of the data or from the loss.")
    counted = non_embedding_params or num_params
    compute = None
    if counted is not None and data_tokens is not None:
        compute = deepseek_compute(
            non_embedding_params=counted,
            data_tokens=data_tokens,
            seq_len=seq_len,
            hidden_size=hidden_size,
            num_layers=num_layers,
        )
    training = Training(data_tokens=data_tokens, num_params=counted, compute=compute, loss=loss)
    rows = tuple(row for each in REFERENCES if (row := _row(each, training)) is not None)
    return BatchReferences(
        rows=rows,
        spreads=tuple(_spreads(rows)),
        is_fine_tuning=looks_like_fine_tuning(
            method=method, num_params=num_params, data_tokens=data_tokens
        ),
    )


def looks_like_fine_tuning(
    *, method: Method, num_params: float | None, data_tokens: float | None
) -> bool:
    """Return whether a training is taken for a fine-tune: adapters, or fewer tokens than weights.

    A choice: pre-training sees 20 tokens per parameter and more (https://arxiv.org/abs/2203.15556).
    """
    if method is not Method.FULL:
        return True
    return num_params is not None and data_tokens is not None and data_tokens < num_params


def _row(reference: Reference, training: Training) -> ReferenceRow | None:
    batch = reference.batch(training)
    if batch is None:
        return None
    return ReferenceRow(
        name=reference.name,
        quantity=reference.quantity,
        batch_tokens=batch,
        learning_rate=reference.rate(training),
        in_range=reference.in_range(training),
        formula=reference.formula,
        fitted=reference.fitted,
        source=reference.source,
        certainty=reference.certainty,
    )


def _spreads(rows: tuple[ReferenceRow, ...]) -> list[Spread]:
    found = []
    for quantity in (OPTIMAL, CRITICAL):
        sizes = [row.batch_tokens for row in rows if row.quantity == quantity]
        if sizes:
            low, high = min(sizes), max(sizes)
            found.append(
                Spread(quantity=quantity, low_tokens=low, high_tokens=high, ratio=high / low)
            )
    return found


def _by_data(law: Callable[..., float]) -> Callable[[Training], float | None]:
    def batch(training: Training) -> float | None:
        data = training.data_tokens
        return None if data is None else law(data_tokens=data)

    return batch


def _by_compute(law: Callable[..., float]) -> Callable[[Training], float | None]:
    def value(training: Training) -> float | None:
        return None if training.compute is None else law(compute=training.compute)

    return value


def _kaplan(training: Training) -> float | None:
    return None if training.loss is None else kaplan_critical(loss=training.loss)


def _step_law_rate(training: Training) -> float | None:
    params, data = training.num_params, training.data_tokens
    if params is None or data is None:
        return None
    return step_law_rate(non_embedding_params=params, data_tokens=data)


def _merrill(training: Training) -> float | None:
    is_late = training.data_tokens is not None and training.data_tokens >= MERRILL_FROM
    return MERRILL_PLATEAU if is_late else None


def _between(low: float, high: float, value: float | None) -> bool | None:
    return None if value is None else low <= value <= high


def _kaplan_range(training: Training) -> bool | None:
    by_size, by_loss = _between(3e6, 85e6, training.num_params), _between(2, 10, training.loss)
    return by_loss and by_size


_POWER_LINES = "111M to 3.3B parameters, SlimPajama, muP, sequences of 2048"

REFERENCES: tuple[Reference, ...] = (
    Reference(
        name="Power Lines",
        quantity=OPTIMAL,
        formula="2048 × 0.0306 D**0.383",
        fitted=_POWER_LINES,
        source="Bergsma et al. 2025, https://arxiv.org/abs/2505.13738",
        certainty=Certainty.MEMORY,
        batch=_by_data(power_lines_optimal),
        in_range=lambda training: _between(111e6, 3.3e9, training.num_params),
    ),
    Reference(
        name="Step Law",
        quantity=OPTIMAL,
        formula="0.58 D**0.571; lr 1.79 N**-0.713 D**0.307",
        fitted="3,700 runs, dense and MoE; a refit by others found another exponent",
        source="Li et al. 2025, https://arxiv.org/abs/2503.04715",
        certainty=Certainty.READ,
        batch=_by_data(step_law_batch),
        in_range=lambda _: None,
        rate=_step_law_rate,
    ),
    Reference(
        name="DeepSeek LLM",
        quantity=OPTIMAL,
        formula="0.2920 C**0.3271; lr 0.3118 C**-0.1250; C = (6 N + 12 L h s) D",
        fitted="1e17 to 2e19 FLOPs, multi-step schedule, AdamW with beta2 0.95",
        source="DeepSeek-AI 2024, https://arxiv.org/abs/2401.02954",
        certainty=Certainty.SECONDARY,
        batch=_by_compute(deepseek_batch),
        in_range=lambda training: _between(1e17, 2e19, training.compute),
        rate=_by_compute(deepseek_rate),
    ),
    Reference(
        name="Power Lines",
        quantity=CRITICAL,
        formula="2048 × 0.0471 D**0.462",
        fitted=_POWER_LINES,
        source="Bergsma et al. 2025, https://arxiv.org/abs/2505.13738",
        certainty=Certainty.MEMORY,
        batch=_by_data(power_lines_critical),
        in_range=lambda training: _between(111e6, 3.3e9, training.num_params),
    ),
    Reference(
        name="Kaplan et al.",
        quantity=CRITICAL,
        formula="2e8 / loss**(1 / 0.21)",
        fitted="3M to 85M parameters, WebText2, loss 2 to 10",
        source="Kaplan et al. 2020, https://arxiv.org/abs/2001.08361",
        certainty=Certainty.READ,
        batch=_kaplan,
        in_range=_kaplan_range,
    ),
    Reference(
        name="Merrill et al.",
        quantity=CRITICAL,
        formula="4096 documents of 4096 tokens, once it stopped growing",
        fitted="OLMo 1B and 7B, late in training",
        source="Merrill et al. 2025, https://arxiv.org/abs/2505.23971",
        certainty=Certainty.SECONDARY,
        batch=_merrill,
        in_range=lambda training: _between(1e9, 7.5e9, training.num_params),
    ),
)
