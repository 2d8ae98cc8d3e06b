"""Activation checkpointing asked for twice, or in a way that breaks."""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.checker.rule import Remark, Rule, at, set_to
from batchplan.checker.subject import Subject
from batchplan.configfile import Severity

_TRAINERS = ("gradient_checkpointing", "activation_checkpointing")
_FSDPS = ("fsdp_config.activation_checkpointing", "fsdp_config.fsdp_activation_checkpointing")
_KWARGS = ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
_ON_BY_DEFAULT = ("trl",)
_ON_HF = ("hf-trainer", "trl", "axolotl", "ms-swift", "llamafactory")
_RENAMED_IN = (5, 23)


def _twice(subject: Subject) -> Iterator[Remark]:
    """The trainer's checkpointing and FSDP's own cannot both be on.

    TRL turns its own on by default, so FSDP's is enough there.

    Source: transformers trainer.py, Trainer (create_accelerator_and_postprocess) raises
    ValueError; ms-swift turns the trainer's off (swift arguments/sft_args.py).
    """
    sharded = [found for found in subject.entries(*_FSDPS) if found[1].value is True]
    if not subject.is_on(*_ON_HF) or not sharded:
        return
    own = subject.first(*_TRAINERS)
    is_on = subject.trainer in _ON_BY_DEFAULT if own is None else own[1].value is True
    if not is_on:
        return
    file, path = subject.place(*_TRAINERS)
    mild = subject.is_on("ms-swift")
    yield at(
        file,
        path,
        f"{path[-1]} is on{'' if own else ' by default'}, and FSDP checkpoints too "
        f"({sharded[0][1].dotted}): "
        + ("ms-swift takes FSDP's." if mild else "the Trainer refuses both."),
        fix=f"Set {path[-1]}: false.",
        severity=Severity.NOTE if mild else None,
        edits=set_to(path, to=False),
    )


def _reentrant_lost(subject: Subject) -> Iterator[Remark]:
    """Adapters under ZeRO-3 need reentrant checkpointing, which TRL's own setting misses.

    TRL writes ``gradient_checkpointing_kwargs`` after the Trainer of 5.23 has read the new name.

    Source: trl trainer/sft_trainer.py, SFTTrainer.__init__; transformers training_args.py.
    """
    if not subject.is_on("trl") or subject.value("sharding") != "zero3":
        return
    if subject.value("method") == "full" or subject.value("checkpointing") == "none":
        return
    if subject.release("transformers") < _RENAMED_IN:
        return
    names = [f"{name}.use_reentrant" for name in _KWARGS]
    if subject.said(*names) is True:
        return
    file, path = subject.place(*names)
    yield at(
        file,
        path,
        "Adapters under ZeRO-3 need reentrant checkpointing; TRL sets it too late for "
        f"transformers {'.'.join(map(str, _RENAMED_IN))} and later.",
        fix="Set gradient_checkpointing_kwargs: {use_reentrant: true}.",
        edits=set_to(path, to=True),
    )


def _partly_frozen(subject: Subject) -> Iterator[Remark]:
    """Reentrant checkpointing loses gradients of a partly frozen model.

    Source: axolotl utils/schemas/validation.py, check_use_reentrant_mismatch raises ValueError.
    """
    if not subject.is_on("axolotl") or not subject.said("unfrozen_parameters"):
        return
    for file, entry in subject.entries("gradient_checkpointing_kwargs.use_reentrant"):
        if entry.value is True:
            yield at(
                file,
                entry.path,
                "use_reentrant must be false for a partly frozen model: axolotl refuses it.",
                fix="Set use_reentrant: false.",
                edits=set_to(entry.path, to=False),
            )


RULES = (
    Rule(
        code="checkpointing-twice",
        severity=Severity.ERROR,
        title="Checkpointing by the trainer and by FSDP",
        source="transformers trainer.py, Trainer; swift arguments/sft_args.py",
        look=_twice,
    ),
    Rule(
        code="reentrant-lost",
        severity=Severity.WARNING,
        title="Adapters under ZeRO-3 without reentrant checkpointing",
        source="trl trainer/sft_trainer.py, SFTTrainer; transformers training_args.py",
        look=_reentrant_lost,
    ),
    Rule(
        code="reentrant-partly-frozen",
        severity=Severity.ERROR,
        title="Reentrant checkpointing of a partly frozen model",
        source="axolotl utils/schemas/validation.py, check_use_reentrant_mismatch",
        look=_partly_frozen,
    ),
)
