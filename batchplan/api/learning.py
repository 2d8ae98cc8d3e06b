"""``learning_rate``: the learning rate for a changed batch, by the rule of its optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from batchplan.api.checks import option, shown, whole
from batchplan.api.documents import SCHEMA_VERSION, plain
from batchplan.errors import SpecError
from batchplan.learning.advice import LearningRate, advise
from batchplan.spec import MAX_SEQ_LEN, Method, Optimizer

_LARGEST_BATCH = 10**15


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRateAnswer:
    """A learning rate, and the inputs it follows from."""

    inputs: dict[str, Any]
    unit: str
    """What ``valid_range`` and the base's batch count: ``sequences`` or ``tokens``."""
    learning_rate: LearningRate

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``batchplan lr --json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "lr",
            "inputs": self.inputs,
            "unit": self.unit,
            "learning_rate": plain(self.learning_rate),
        }


def learning_rate(
    *,
    lr: float | str,
    from_batch: int | str,
    to_batch: int | str,
    optimizer: str = "adamw",
    method: str = "full",
    seq_len: int | str | None = None,
) -> LearningRateAnswer:
    """Return the learning rate for a global batch that changes.

    Args:
        lr: the learning rate used before.
        from_batch: global batch before: sequences, or tokens where it has a suffix (``0.5M``).
        to_batch: global batch after, in the same form.
        optimizer: decides the rule: square root for Adam, linear for SGD.
        method: full, lora or qlora.
        seq_len: tokens per sequence; needed when one batch is in tokens and the other is not.

    Raises:
        SpecError: when an input is wrong, or two units do not go together.
    """
    length = None if seq_len is None else whole("seq_len", seq_len)
    if length is not None and length > MAX_SEQ_LEN:
        raise SpecError(f"--seq-len {length:.4g} is too large: at most {MAX_SEQ_LEN:,}.")
    before, before_in_tokens = batch_size("from", from_batch)
    after, after_in_tokens = batch_size("to", to_batch)
    if before_in_tokens != after_in_tokens and length is None:
        raise SpecError("One batch is in tokens and one in sequences: add --seq-len.")
    if after_in_tokens:
        # The rules need the ratio alone, so a token counts as a sequence of one.
        sequences, unit = (after, 1) if length is None else (max(1, round(after / length)), length)
    else:
        sequences, unit = after, length or 1
    advice = advise(
        method=_member(Method, "method", method),
        optimizer=_member(Optimizer, "optimizer", optimizer),
        num_params=1,  # only chooses a published run, and the user's own base replaces that
        hidden_size=None,
        global_batch_size=sequences,
        seq_len=unit,
        base_lr=positive_number("lr", lr),
        base_batch=None if before_in_tokens else before,
        base_batch_tokens=before if before_in_tokens else None,
    )
    inputs = {
        "lr": advice.base.value,
        "from_batch": from_batch,
        "to_batch": to_batch,
        "optimizer": str(optimizer),
        "method": str(method),
        "seq_len": length,
    }
    only_tokens = after_in_tokens and length is None
    return LearningRateAnswer(
        inputs=inputs, unit="tokens" if only_tokens else "sequences", learning_rate=advice
    )


def positive_number(name: str, value: object) -> float:
    """Return a finite number above zero, given as a number or as text.

    Raises:
        SpecError: when it is none.
    """
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not 0 < number < 1e6:
        raise SpecError(f"{option(name)} {shown(value)} must be a number above 0, such as 2e-5.")
    return number


def batch_size(name: str, value: int | str) -> tuple[int, bool]:
    """Return a batch and whether it is in tokens, as a suffix says.

    Raises:
        SpecError: when it is no whole number above zero.
    """
    count = whole(name, value)
    if count > _LARGEST_BATCH:
        raise SpecError(f"{option(name)} {shown(value)} is absurdly large.")
    return count, isinstance(value, str) and value.strip()[-1:].isalpha()


def _member(kind: type[Any], name: str, value: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(member.value for member in kind)
        raise SpecError(f"{option(name)} {shown(value)}: must be one of {allowed}.") from None
