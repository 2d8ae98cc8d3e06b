"""``learning_rate``: the learning rate for a changed batch, and what papers say of the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from batchplan.api.checks import option, shown, whole
from batchplan.api.documents import SCHEMA_VERSION, plain
from batchplan.errors import SpecError
from batchplan.learning.advice import rate_for
from batchplan.learning.change import DEFAULT_BETA2, Change
from batchplan.learning.rate import LearningRate
from batchplan.learning.references import BatchReferences, batch_references
from batchplan.learning.rules import RuleValue, compare
from batchplan.learning.runs import PublishedRun, comparable_runs
from batchplan.learning.start import GIVEN, OPTIMIZER_RULES, Base
from batchplan.sources import load_runs
from batchplan.spec import MAX_SEQ_LEN, Method, Optimizer

_LARGEST_BATCH = 10**15
_LARGEST_DATA = 10**18
_LARGEST_NUMBER = 10**6
SEQUENCES, TOKENS = "sequences", "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRateAnswer:
    """A learning rate, and the inputs it follows from."""

    inputs: dict[str, Any]
    """Keyword arguments of ``learning_rate`` that give this answer again."""
    unit: str
    """What ``valid_range`` and the base's batch count: ``sequences`` or ``tokens``."""
    learning_rate: LearningRate | None
    """None when only critical batches were asked for."""
    rules: tuple[RuleValue, ...] = ()
    """What every published rule gives, the recommended one first."""
    references: BatchReferences | None = None
    """Published batches for such data; None where neither its size nor the loss was given."""
    reference_runs: tuple[PublishedRun, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``batchplan lr --json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "lr",
            "inputs": self.inputs,
            "unit": self.unit,
            "learning_rate": plain(self.learning_rate),
            "rules": plain(self.rules),
            "batch_references": plain(self.references),
            "reference_runs": plain(self.reference_runs),
        }


def learning_rate(
    *,
    lr: float | str | None = None,
    from_batch: int | str | None = None,
    to_batch: int | str | None = None,
    optimizer: str = "adamw",
    method: str = "full",
    seq_len: int | str | None = None,
    beta2: float | str | None = None,
    weight_decay: float | str | None = None,
    noise_scale: int | str | None = None,
    noise: str | PathLike[str] | None = None,
    params: int | float | str | None = None,
    data_tokens: int | str | None = None,
    loss: float | str | None = None,
) -> LearningRateAnswer:
    """Return the learning rate for a global batch that changes.

    Args:
        lr: the learning rate used before.
        from_batch: global batch before: sequences, or tokens where it has a suffix (``0.5M``).
        to_batch: global batch after, in the same form.
        optimizer: decides the rule: square root for Adam, linear for SGD.
        method: full, lora or qlora.
        seq_len: tokens per sequence; needed when some batches are in tokens and some are not.
        beta2: Adam's beta2 before; None is 0.999.
        weight_decay: AdamW's weight decay before.
        noise_scale: the measured gradient noise scale, in the form of a batch; rules stop there.
        noise: a file of ``batchplan noise``, in place of ``noise_scale``.
        params: parameters of the model, for critical batches and published runs.
        data_tokens: tokens of the data; alone (with ``params``) it gives critical batches only.
        loss: nats per token, for Kaplan's critical batch.

    Raises:
        SpecError: when an input is wrong, or two units do not go together.
    """
    length = None if seq_len is None else whole("seq_len", seq_len)
    if length is not None and length > MAX_SEQ_LEN:
        raise SpecError(f"--seq-len {length:.4g} is too large: at most {MAX_SEQ_LEN:,}.")
    inputs = {
        "lr": None if lr is None else positive_number("lr", lr),
        "from_batch": from_batch,
        "to_batch": to_batch,
        "optimizer": _member(Optimizer, "optimizer", optimizer),
        "method": _member(Method, "method", method),
        "seq_len": length,
        "beta2": None if beta2 is None else positive_number("beta2", beta2, "0.95"),
        "weight_decay": _optional_number("weight_decay", weight_decay, "0.1"),
        "noise_scale": noise_scale,
        "noise": None if noise is None else str(noise),
        "params": _optional_count("params", params),
        "data_tokens": _optional_count("data_tokens", data_tokens),
        "loss": _optional_number("loss", loss, "2.5"),
    }
    unit = _unit(to_batch, length)
    change = _change(inputs, unit)
    return LearningRateAnswer(
        inputs=plain(inputs),
        unit=unit,
        learning_rate=None
        if change is None
        else rate_for(
            change, data_tokens=inputs["data_tokens"], weight_decay=inputs["weight_decay"]
        ),
        rules=() if change is None else compare(change),
        references=_references(inputs),
        reference_runs=_runs(inputs, change),
    )


def positive_number(name: str, value: object, example: str = "2e-5") -> float:
    """Return a finite number above zero, given as a number or as text.

    Raises:
        SpecError: when it is none.
    """
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not number > 0:
        raise SpecError(
            f"{option(name)} {shown(value)} must be a number above 0, such as {example}."
        )
    if number >= _LARGEST_NUMBER:
        raise SpecError(f"{option(name)} {shown(value)} is absurdly large.")
    return number


def batch_size(name: str, value: int | str) -> tuple[int, bool]:
    """Return a batch and whether it is in tokens, as a suffix says.

    Raises:
        SpecError: when it is no whole number above zero.
    """
    count = whole(name, value)
    if count > _LARGEST_BATCH:
        raise SpecError(f"{option(name)} {shown(value)} is absurdly large.")
    return count, _is_in_tokens(value)


def _is_in_tokens(value: object) -> bool:
    return isinstance(value, str) and value.strip()[-1:].isalpha()


def _unit(to_batch: object, seq_len: int | None) -> str:
    """Return what batches are counted in: tokens only where a sequence's length is not known."""
    return TOKENS if seq_len is None and _is_in_tokens(to_batch) else SEQUENCES


def _counted(option_name: str, value: int | str, unit: str, seq_len: int | None) -> float:
    """Return a batch in a unit, by the length of a sequence where that is needed."""
    size, in_tokens = batch_size(option_name, value)
    if in_tokens is (unit == TOKENS):
        return size
    if seq_len is None:
        own = TOKENS if in_tokens else SEQUENCES
        raise SpecError(
            f"--{option_name.replace('_', '-')} {shown(value)} is in {own} and --to in {unit}: "
            "add --seq-len."
        )
    return size / seq_len


def _change(inputs: Mapping[str, Any], unit: str) -> Change | None:
    """Return the change of batch that is asked about, None when it is critical batches alone."""
    named = {"--lr": "lr", "--from": "from_batch", "--to": "to_batch"}
    missing = [flag for flag, name in named.items() if inputs[name] is None]
    if len(missing) == len(named):
        _refuse_without_change(inputs)
        return None
    if missing:
        raise SpecError(f"--lr, --from and --to go together: {' and '.join(missing)} missing.")
    _refuse_what_is_adams(inputs)
    length = inputs["seq_len"]
    before, after = (
        _counted(name, inputs[f"{name}_batch"], unit, length) for name in ("from", "to")
    )
    tokens = after if unit == TOKENS else None if length is None else after * length
    if inputs["data_tokens"] is not None and tokens is None:
        raise SpecError("--data-tokens is in tokens and --to in sequences: add --seq-len.")
    return Change(
        base=Base(value=inputs["lr"], global_batch_size=before, source=GIVEN),
        batch=after,
        optimizer=inputs["optimizer"],
        method=inputs["method"],
        sequences=after if unit == SEQUENCES else None,
        tokens=tokens,
        noise_scale=_noise_scale(inputs, unit),
        beta2=inputs["beta2"] or DEFAULT_BETA2,
    )


def _noise_scale(inputs: Mapping[str, Any], unit: str) -> float | None:
    """Return the measured noise scale in a unit, from the option or the file that has it."""
    given, path, length = (inputs[name] for name in ("noise_scale", "noise", "seq_len"))
    if given is not None and path is not None:
        raise SpecError("Give --noise-scale or --noise, not both.")
    if given is not None:
        return _counted("noise_scale", given, unit, length)
    if path is None:
        return None
    from batchplan.api.measured_noise import bounded_noise

    record = bounded_noise(path)
    if unit == TOKENS:
        return record.tokens.value
    return record.sequences.value if length is None else record.tokens.value / length


def _refuse_what_is_adams(inputs: Mapping[str, Any]) -> None:
    optimizer = inputs["optimizer"]
    for name in () if OPTIMIZER_RULES[optimizer].is_adam else ("beta2", "weight_decay"):
        if inputs[name] is not None:
            raise SpecError(f"{option(name)} is AdamW's: leave it out with {optimizer}.")


def _refuse_without_change(inputs: Mapping[str, Any]) -> None:
    if inputs["data_tokens"] is None and inputs["loss"] is None:
        raise SpecError(
            "Give --lr, --from and --to; or --data-tokens (and --params) for critical batches."
        )
    for name in ("noise_scale", "noise", "weight_decay", "beta2"):
        if inputs[name] is not None:
            raise SpecError(f"{option(name)} needs --lr, --from and --to.")


def _references(inputs: Mapping[str, Any]) -> BatchReferences | None:
    if inputs["data_tokens"] is None and inputs["loss"] is None:
        return None
    return batch_references(
        method=inputs["method"],
        data_tokens=inputs["data_tokens"],
        num_params=inputs["params"],
        loss=inputs["loss"],
    )


def _runs(inputs: Mapping[str, Any], change: Change | None) -> tuple[PublishedRun, ...]:
    if change is None or change.tokens is None or inputs["params"] is None:
        return ()
    return comparable_runs(
        method=change.method, num_params=inputs["params"], tokens=change.tokens, runs=load_runs()
    )


def _optional_number(name: str, value: object, example: str) -> float | None:
    return None if value is None else positive_number(name, value, example)


def _optional_count(name: str, value: object) -> int | None:
    if value is None:
        return None
    count = whole(name, value)
    if count > _LARGEST_DATA:
        raise SpecError(f"{option(name)} {shown(value)} is absurdly large.")
    return count


def _member(kind: type[Any], name: str, value: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(member.value for member in kind)
        raise SpecError(f"{option(name)} {shown(value)}: must be one of {allowed}.") from None
