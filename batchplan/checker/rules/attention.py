"""Packed rows and the attention that keeps their documents apart."""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.checker.rule import Remark, Rule, at, set_to
from batchplan.checker.subject import Subject
from batchplan.configfile import Severity

_PACKING = ("packing", "padding_free", "sample_packing", "neat_packing")
_ATTENTION = ("attn_implementation", "model_init_kwargs.attn_implementation", "attn_impl")
_FLASH = ("flash_attn", "flash_attention_2", "flash_attention_3", "flash_attention_4")
"""What ms-swift takes. Source: swift arguments/sft_args.py, _check_padding_free."""
_BORDERS_KEPT = (1, 16)
"""TRL warned up to 1.15; from 1.16 on position ids carry the borders for every attention."""


def _ms_swift(subject: Subject) -> Iterator[Remark]:
    """Packing and padding-free rows need flash attention.

    Source: swift arguments/sft_args.py, SftArguments._check_padding_free raises ValueError.
    """
    packed = _packed(subject)
    if not subject.is_on("ms-swift") or packed is None:
        return
    if subject.said("attn_impl") in _FLASH:
        return
    yield _mismatch(
        subject,
        "attn_impl",
        "flash_attn",
        severity=Severity.ERROR,
        text=f"{packed} needs flash attention, and ms-swift refuses {_shown(subject)}.",
    )


def _trl(subject: Subject) -> Iterator[Remark]:
    """Up to TRL 1.15 packed rows without flash attention see each other's documents.

    Source: trl trainer/sft_trainer.py, SFTTrainer.__init__ (FLASH_ATTENTION_VARIANTS), 1.15.
    """
    packed = _packed(subject)
    if not subject.is_on("trl", "unsloth") or packed is None:
        return
    if subject.release("trl") >= _BORDERS_KEPT or subject.value("attention") == "flash":
        return
    if subject.said("packing_strategy") == "wrapped":
        return
    yield _mismatch(
        subject,
        "attn_implementation",
        "flash_attention_2",
        severity=Severity.WARNING,
        text=f"{packed} with {_shown(subject)}: only flash attention keeps the documents of a "
        "packed row apart in this TRL.",
    )


def _llamafactory(subject: Subject) -> Iterator[Remark]:
    """Without ``neat_packing`` the documents of a packed row attend to each other.

    Source: llamafactory hparams/data_args.py, DataArguments.neat_packing.
    """
    found = subject.first("packing")
    if not subject.is_on("llamafactory") or found is None or found[1].value is not True:
        return
    if subject.said("neat_packing") is True or subject.said("stage") == "pt":
        return
    file, entry = found
    yield at(
        file,
        entry.path,
        "packing without neat_packing: the documents of a packed row attend to each other.",
        fix="Add neat_packing: true.",
        severity=Severity.NOTE,
        edits=set_to(("neat_packing",), to=True),
    )


def _mismatch(subject: Subject, key: str, value: str, *, severity: Severity, text: str) -> Remark:
    named = subject.first(*_ATTENTION)
    file, place = subject.place(*(_PACKING if named is None else _ATTENTION))
    return at(
        file,
        place,
        text,
        fix=f"Set {key}: {value}, or turn packing off.",
        severity=severity,
        edits=set_to((key,) if named is None else place, to=value),
    )


def _packed(subject: Subject) -> str | None:
    """Return the key that asks for packed rows, or None."""
    return next((name for name in _PACKING if subject.said(name) is True), None)


def _shown(subject: Subject) -> str:
    named = subject.said(*_ATTENTION)
    return "the default attention" if named is None else repr(named)


def _look(subject: Subject) -> Iterator[Remark]:
    for rule in (_ms_swift, _trl, _llamafactory):
        yield from rule(subject)


RULES = (
    Rule(
        code="attention-packing-mismatch",
        severity=Severity.WARNING,
        title="Packed rows without an attention that keeps documents apart",
        source="swift arguments/sft_args.py; trl trainer/sft_trainer.py; "
        "llamafactory hparams/data_args.py",
        look=_look,
    ),
)
