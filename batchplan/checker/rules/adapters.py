"""Quantised weights take no updates: they need adapters, or nothing trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from batchplan.checker.roles import SCRIPT
from batchplan.checker.rule import Remark, Rule, at
from batchplan.checker.subject import Subject
from batchplan.configfile import Severity

_TRANSFORMERS = "transformers trainer_utils.py, validate_quantization_for_training"
_LOADING = ("load_in_4bit", "load_in_8bit")
_IN_SCRIPTS = (*_LOADING, "quantization_config.load_in_4bit", "quantization_config.load_in_8bit")
_TRAINERS = ("Trainer", "SFTTrainer")
_HINTS = ("lora", "peft", "adapter")
"""Words in the names of what adds adapters, one's own helpers included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """How a trainer's file asks for quantised weights, and for adapters."""

    quantises: tuple[str, ...]
    asks: str
    without: tuple[Any, ...]
    """Values of ``asks`` with which there are none; None where the key may be left out."""
    fix: str
    source: str


_WORDS = {
    "trl": _Words(
        quantises=_LOADING,
        asks="use_peft",
        without=(None, False),
        fix="Set use_peft: true",
        source=_TRANSFORMERS,
    ),
    "axolotl": _Words(
        quantises=_LOADING,
        asks="adapter",
        without=(None, ""),
        fix="Set adapter: qlora",
        source="axolotl utils/schemas/peft.py, validate_adapter",
    ),
    "llamafactory": _Words(
        quantises=("quantization_bit",),
        asks="finetuning_type",
        without=("full", "freeze"),
        fix="Set finetuning_type: lora",
        source="llamafactory hparams/parser.py, _verify_model_args",
    ),
    "ms-swift": _Words(
        quantises=("quant_bits",),
        asks="tuner_type",
        without=("full",),
        fix="Set tuner_type: lora",
        source=_TRANSFORMERS,
    ),
}


def _missing(subject: Subject) -> Iterator[Remark]:
    """Trainers refuse to train quantised weights without adapters.

    Source: ``_WORDS``.
    """
    yield from _in_configs(subject)
    yield from _in_scripts(subject)


def _in_configs(subject: Subject) -> Iterator[Remark]:
    words = _WORDS.get(subject.trainer)
    if words is None:
        return
    quantised = next((one for one in subject.entries(*words.quantises) if one[1].value), None)
    if quantised is None or subject.said(words.asks) not in words.without:
        return
    file, entry = quantised
    if subject.roles[file.name] != SCRIPT:
        yield at(
            file,
            entry.path,
            f"The weights are quantised and no adapters are asked for, which {words.source} "
            "refuses.",
            fix=f"{words.fix}, or remove {entry.dotted}.",
        )


def _in_scripts(subject: Subject) -> Iterator[Remark]:
    """Yield it of a script that calls the Trainer, where nothing looks like adapters."""
    for file in subject.of_role(SCRIPT):
        calls = {str(path[0]).rpartition(".")[2] for path in file.entries}
        text = file.text.lower()
        if not calls & set(_TRAINERS) or any(hint in text for hint in _HINTS):
            continue
        for beside, entry in subject.entries(*_IN_SCRIPTS):
            if beside is file and entry.value is True:
                yield at(
                    file,
                    entry.path,
                    "The weights are quantised and nothing here adds adapters, without which the "
                    f"Trainer refuses ({_TRANSFORMERS}).",
                    fix="Give the model adapters: peft_config=LoraConfig(...) or get_peft_model.",
                    severity=Severity.WARNING,
                )
                break


RULES = (
    Rule(
        code="quantised-without-adapters",
        severity=Severity.ERROR,
        title="Quantised weights, and no adapters to train",
        source=_TRANSFORMERS,
        look=_missing,
    ),
)
